#!/bin/sh
# logged.sh LOG COMMAND...: runs a command with its output in LOG, and shows that if the command fails.
log=$1
shift
"$@" >"$log" 2>&1 && exit
status=$?
cat "$log" >&2
exit $status
