// OpenAI's JavaScript client against a server: prints as JSON what it got.
//
//     NODE_PATH=node_modules node openai_client.cjs URL KEY BODY
//
// BODY is the JSON of a chat that calls the tool `add`.
const OpenAI = require('openai');

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    const { status, code, param, requestID } = error;
    return { kind: error.constructor.name, status, code, param, has_id: Boolean(requestID) };
  }
  return null;
}

async function main() {
  const [url, key, text] = process.argv.slice(2);
  const chat = JSON.parse(text);
  const { tools, ...plain } = chat;
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
  const completions = client.chat.completions;
  const found = {};

  found.models = [];
  for await (const model of client.models.list()) found.models.push(model.id);

  found.whole = (await completions.create(chat)).choices[0];
  const stream = completions.stream(chat);
  found.kinds = new Set();
  stream.on('content', () => found.kinds.add('content'));
  stream.on('chunk', () => found.kinds.add('chunk'));
  found.streamed = (await stream.finalChatCompletion()).choices[0];
  found.kinds = [...found.kinds].sort();

  found.deltas = '';
  for await (const chunk of await completions.create({ ...plain, stream: true })) {
    found.deltas += chunk.choices[0].delta.content ?? '';
  }
  found.content = (await completions.create(plain)).choices[0].message.content;

  const calls = [];
  const runner = completions.runTools({
    ...chat,
    tools: [{
      type: 'function',
      function: {
        ...tools[0].function, parse: JSON.parse, function: (given) => calls.push(given) && '3',
      },
    }],
  }, { maxChatCompletions: 2 });
  await runner.done();
  found.calls = calls;

  const schema = {
    type: 'object',
    properties: { a: { enum: [1, 2] } },
    required: ['a'],
    additionalProperties: false,
  };
  const format = { type: 'json_schema', json_schema: { name: 'sum', strict: true, schema } };
  found.parsed = JSON.parse(
    (await completions.parse({ ...plain, response_format: format })).choices[0].message.content);

  const { _request_id: id, choices } = await client.completions.create(
    { model: chat.model, prompt: ['x', 'y'], max_tokens: 3 });
  found.num_completions = choices.length;
  found.has_id = Boolean(id);

  found.invalid = await failure(completions.create({ ...plain, temperature: -1 }));
  found.no_model = await failure(completions.create({ ...plain, model: 'other' }));
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'wrong' });
  found.no_key = await failure(stranger.models.list());
  found.in_stream = await failure((async () => {
    const options = { ...plain, stream: true, vllm_xargs: { fail_after: 3 }, ignore_eos: true };
    for await (const _ of await completions.create(options));
  })());

  const left = await completions.create(
    { ...plain, stream: true, vllm_xargs: { seconds: 0.02 }, ignore_eos: true });
  for await (const _ of left) break;

  // As in the client's documentation.
  const answer = await completions.create({
    model: chat.model,
    messages: [
      { role: 'developer', content: 'Talk like a pirate.' },
      { role: 'user', content: 'Are semicolons optional in JavaScript?' },
    ],
  }, { maxRetries: 5, timeout: 60 * 1000 });
  found.answer = typeof answer.choices[0].message.content;
  console.log(JSON.stringify(found));
}

main();
