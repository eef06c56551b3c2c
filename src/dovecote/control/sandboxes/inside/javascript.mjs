// Runs JavaScript for Dovecote: requests on stdin, events on descriptor 3, a JSON object a line each way.
//
// Code runs in the main thread, through V8's inspector in the mode of a console: `await` at the top, names declared
// again, the value of the last expression. A worker reads requests and keeps time, so that a loop can be ended.

import module from 'node:module';
import fs from 'node:fs';
import inspector from 'node:inspector';
import net from 'node:net';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import util from 'node:util';
import v8 from 'node:v8';
import { Worker, isMainThread, parentPort } from 'node:worker_threads';

const WIRE = 3;
const MOST_WAITING = 64; // executions
const MOST_REQUEST = 8 << 20; // bytes of a line
const MOST_RESULT = 6 << 20; // bytes of one result
const PIECE = 64 << 10; // characters of output in one event
const HEEDED_WITHIN = 200; // milliseconds in which a thread that only waits answers
const YIELD_WITHIN = 5000; // milliseconds that code has to end once it was told to
const SHOWN = { depth: 4, maxArrayLength: 100, maxStringLength: 100_000, breakLength: 100 };

function send(event) {
  let line = Buffer.from(JSON.stringify(event) + '\n');
  while (line.length) {
    try {
      line = line.subarray(fs.writeSync(WIRE, line));
    } catch (error) {
      if (error.code === 'EAGAIN') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
      else process.exit(1);
    }
  }
}

// -- the worker: requests and time

function keep() {
  const waiting = [];
  let current = null;
  let serial = 0;

  function next() {
    if (current || !waiting.length) return;
    current = waiting.shift();
    current.serial = ++serial;
    parentPort.postMessage({ op: 'execute', request: current, serial });
  }

  function stop(why) {
    if (!current || current.why) return;
    const mine = current;
    mine.why = why;
    clearTimeout(mine.timer);
    parentPort.postMessage({ op: 'abandon', serial: mine.serial });
    const end = () => {
      if (current !== mine) return;
      // Connected for this only: a process with a debugger does not end before that has left.
      const session = new inspector.Session();
      session.connectToMainThread();
      session.post('Runtime.terminateExecution', () => session.disconnect());
      mine.timer = setTimeout(end, HEEDED_WITHIN);
    };
    mine.timer = setTimeout(end, HEEDED_WITHIN);
    mine.last = setTimeout(() => current === mine && give_up(mine), YIELD_WITHIN);
  }

  function give_up(mine) {
    send({ type: 'error', id: mine.id, name: 'KernelKilled', value: 'it did not heed the interrupt', traceback: [] });
    send({ type: 'done', id: mine.id, status: mine.why, count: null, dropped: 0 });
    process.kill(process.pid, 'SIGKILL');
  }

  parentPort.on('message', (told) => {
    if (!current || told.serial !== current.serial) return;
    if (told.what === 'began') {
      current.timer = setTimeout(() => stop('timed_out'), Math.min(current.timeout * 1000, 2 ** 31 - 1));
    } else {
      clearTimeout(current.timer);
      clearTimeout(current.last);
      send({ ...told.done, status: current.why ?? told.done.status });
      current = null;
      next();
    }
  });

  function take(request) {
    if (request.op === 'execute') {
      if (waiting.length >= MOST_WAITING) return send({ type: 'refused', id: request.id });
      send({ type: 'queued', id: request.id });
      waiting.push(request);
      return next();
    }
    if (request.op === 'interrupt') {
      const at = waiting.findIndex((each) => each.id === request.execution);
      if (request.execution == null || current?.id === request.execution) stop('interrupted');
      else if (at >= 0) {
        waiting.splice(at, 1);
        send({ type: 'done', id: request.execution, status: 'interrupted', count: null, dropped: 0 });
      }
      return send({ type: 'answer', id: request.id });
    }
    if (request.op === 'follow') {
      const ids = [current?.id, ...waiting.map((each) => each.id)];
      return send({ type: 'answer', id: request.id, is_there: ids.includes(request.execution) });
    }
  }

  let rest = [];
  let size = 0;
  const input = new net.Socket({ fd: 0, readable: true, writable: false });
  input.on('data', (data) => {
    let from = 0;
    for (let at; (at = data.indexOf(10, from)) >= 0; from = at + 1) {
      const line = Buffer.concat([...rest, data.subarray(from, at)]).toString();
      rest = [];
      size = 0;
      take(JSON.parse(line));
    }
    rest.push(data.subarray(from));
    size += data.length - from;
    if (size > MOST_REQUEST) process.kill(process.pid, 'SIGKILL');
  });
  input.on('close', () => process.kill(process.pid, 'SIGKILL'));
}

// -- the main thread: code

class Output {
  constructor(id, most) {
    this.id = id;
    this.room = most;
    this.dropped = 0;
  }

  stream(name, text) {
    for (let at = 0; at < text.length; at += PIECE) {
      let piece = text.slice(at, at + PIECE);
      const bytes = Buffer.from(piece);
      const kept = Math.min(bytes.length, this.room);
      if (kept < bytes.length) piece = bytes.subarray(0, kept).toString().replace(/\ufffd+$/, '');
      if (piece) send({ type: name, id: this.id, text: piece });
      this.room -= kept;
      this.drop(bytes.length - kept);
    }
  }

  result(data, is_main) {
    const kept = {};
    const omitted = [];
    let most = Math.min(this.room, MOST_RESULT);
    let dropped = 0;
    const sized = Object.entries(data).map(([mime, value]) => [mime, value, Buffer.byteLength(JSON.stringify(value))]);
    for (const [mime, value, bytes] of sized.sort((one, other) => one[2] - other[2])) {
      if (bytes > most) {
        omitted.push(mime);
        dropped += bytes;
      } else {
        kept[mime] = value;
        most -= bytes;
        this.room -= bytes;
      }
    }
    send({ type: 'result', id: this.id, data: kept, is_main, omitted });
    this.drop(dropped);
  }

  error(name, value, traceback) {
    const cut = (text) => String(text).slice(0, PIECE);
    send({ type: 'error', id: this.id, name: cut(name), value: cut(value), traceback: traceback.slice(0, 100).map(cut) });
  }

  drop(bytes) {
    if (bytes && !this.dropped) send({ type: 'truncated', id: this.id });
    this.dropped += bytes;
  }
}

function run(worker, language) {
  let session = new inspector.Session();
  session.connect();
  // The inspector tells of an awaited promise that was collected, and tells it in the middle of that, which ends the
  // process. Hence promises are held while they are waited for, and nobody is left to be told once they are not.
  const reconnect = () => {
    session.disconnect();
    session = new inspector.Session();
    session.connect();
  };
  const post = (method, parameters) =>
    new Promise((answer, refuse) => session.post(method, parameters, (error, it) => (error ? refuse(error) : answer(it))));
  const handed = Symbol('dovecote');
  let output = new Output('', 0);
  let count = 0;
  let abandon = () => {};

  for (const name of ['stdout', 'stderr']) {
    process[name].write = (data, encoding, done) => {
      output.stream(name, typeof data === 'string' ? data : Buffer.from(data).toString());
      const then = typeof encoding === 'function' ? encoding : done;
      if (then) process.nextTick(then);
      return true;
    };
  }
  const here = path.join(process.cwd(), '_');
  const require = module.createRequire(here);
  const load = (name) => {
    if (/^[a-z]+:/.test(name)) return import(name);
    if (/^\.{0,2}\//.test(name)) return import(pathToFileURL(path.resolve(process.cwd(), name)).href);
    return import(resolved(require, name));
  };
  const display = (value) => output.result(bundle(value), false);
  const hidden = { enumerable: false, writable: true, configurable: true };
  Object.defineProperty(globalThis, 'require', { ...hidden, value: require });
  Object.defineProperty(globalThis, '__dovecote_import', { ...hidden, value: load });
  Object.defineProperty(globalThis, 'display', { ...hidden, value: display });
  Object.defineProperty(globalThis, Symbol.for('dovecote.hand'), { ...hidden, value: (value) => (run[handed] = value) });
  for (const event of ['uncaughtException', 'unhandledRejection']) {
    process.on(event, (error) => output.stream('stderr', `Uncaught ${util.inspect(error)}\n`));
  }

  async function real(remote) {
    const { objectId, unserializableValue, value } = remote;
    const argument = objectId ? { objectId } : unserializableValue ? { unserializableValue } : { value };
    const globals = await post('Runtime.evaluate', { expression: 'globalThis' });
    await post('Runtime.callFunctionOn', {
      objectId: globals.result.objectId,
      functionDeclaration: 'function (value) { this[Symbol.for("dovecote.hand")](value); }',
      arguments: [argument],
    });
    const found = run[handed];
    run[handed] = undefined;
    return found;
  }

  async function evaluate(code) {
    const expression = imports(language === 'typescript' ? untyped(code) : code);
    const ended = Symbol('ended');
    const ending = new Promise((end) => (abandon = () => end(ended)));
    const pending = new Set();
    const unhook = v8.promiseHooks.createHook({
      init: (promise) => pending.add(promise),
      settled: (promise) => pending.delete(promise),
    });
    let answer;
    try {
      const evaluated = post('Runtime.evaluate', { expression, replMode: true, awaitPromise: true });
      answer = await Promise.race([evaluated, ending]);
      if (answer === ended) reconnect();
    } finally {
      unhook();
    }
    if (answer === ended) {
      output.error('Interrupted', 'it is not waited for any more', []);
      return 'error';
    }
    const failed = answer.exceptionDetails;
    const value = await real(failed ? failed.exception : answer.result);
    if (failed) return fail(output, value, `    at <anonymous>:${failed.lineNumber + 1}:${failed.columnNumber + 1}`);
    if (value !== undefined) output.result(bundle(value), true);
    return 'ok';
  }

  async function execute(request, serial) {
    output = new Output(request.id, request.max_output);
    const before = Object.entries(request.env ?? {}).map(([name, value]) => {
      const old = process.env[name];
      process.env[name] = value;
      return [name, old];
    });
    worker.postMessage({ what: 'began', serial });
    send({ type: 'began', id: request.id });
    let status = 'error';
    try {
      status = await evaluate(request.code);
    } catch (error) {
      if (error?.code === 'ERR_INSPECTOR_COMMAND') output.error('Interrupted', 'it was ended', []);
      else output.error(error?.name ?? 'Error', error?.message ?? String(error), frames(error));
    }
    abandon = () => {};
    for (const [name, old] of before) old === undefined ? delete process.env[name] : (process.env[name] = old);
    const done = { type: 'done', id: request.id, status, count: ++count, dropped: output.dropped };
    worker.postMessage({ what: 'done', serial, done });
  }

  let serving = 0;
  worker.on('message', ({ op, request, serial }) => {
    if (op === 'execute') execute(request, (serving = serial));
    else if (op === 'abandon' && serial === serving) abandon();
  });
  send({ type: 'ready', kernel: `node ${process.version}` });
}

function bundle(value) {
  const own = value?.[Symbol.for('Jupyter.display')];
  if (typeof own === 'function') return own.call(value);
  const keys = value && Object.getPrototypeOf(value) === Object.prototype ? Object.keys(value) : [];
  if (keys.length && keys.every((key) => /^[a-z]+\/[\w.+-]+$/.test(key))) return value;
  const shown = { 'text/plain': util.inspect(value, SHOWN) };
  if (keys.length || Array.isArray(value)) {
    try {
      const plain = JSON.stringify(value);
      if (plain !== undefined) shown['application/json'] = JSON.parse(plain);
    } catch {} // cycles and the like: it has its text
  }
  return shown;
}

function fail(output, error, place) {
  if (error instanceof Error || typeof error?.stack === 'string') {
    const lines = frames(error);
    if (place && !lines.some((line) => line.includes('<anonymous>'))) lines.push(place);
    output.error(error.name ?? 'Error', error.message ?? '', lines);
  } else output.error('Uncaught', util.inspect(error, SHOWN), []);
  return 'error';
}

function frames(error) {
  const lines = String(error?.stack ?? '').split('\n');
  return lines.filter((line) => !/node:internal|at Session\.post \(node:|javascript\.mjs|at new Promise \(<anonymous>\)|at Worker\.emit/.test(line));
}

function untyped(code) {
  if (!module.stripTypeScriptTypes) throw new Error('TypeScript needs Node 22.13 or later');
  const warn = process.emitWarning;
  process.emitWarning = () => {};
  try {
    return module.stripTypeScriptTypes(code, { mode: 'transform' });
  } finally {
    process.emitWarning = warn;
  }
}

function resolved(require, name) {
  // Where `require` finds a package is where it is; whether it is a module of the other kind, `import` sees itself.
  try {
    const found = require.resolve(name);
    return found === name ? name : pathToFileURL(found).href;
  } catch {
    return name;
  }
}

// A console cannot import: `import x from 'y'` and `import('y')` become calls. Texts, comments and patterns are passed over.
const TOKEN =
  /\/\/[^\n]*|\/\*[^]*?\*\/|'(?:\\[^]|[^'\\\n])*'|"(?:\\[^]|[^"\\\n])*"|`(?:\\[^]|[^`\\])*`|(?<=^|[=(,;:!&|?{}\n]\s*)\/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\/[a-z]*|(?<![\w$.])import(?=\s*\()|(?<=^|[;\n])[ \t]*import\s+(?:([\w$*{}\s,]+?)\s+from\s+)?(['"])([^'"\n]+)\2[ \t]*;?/g;

function imports(code) {
  return code.replace(TOKEN, (token, names, _, name) => {
    if (token === 'import') return '__dovecote_import';
    if (name === undefined) return token;
    const call = `await __dovecote_import(${JSON.stringify(name)})`;
    if (!names) return `${call};`;
    return declared(names.trim(), call);
  });
}

function declared(names, call) {
  const all = /\*\s*as\s+([\w$]+)/.exec(names);
  const some = /\{([^}]*)\}/.exec(names);
  const one = /^([\w$]+)/.exec(names);
  const parts = [];
  if (all) parts.push(`const ${all[1]} = ${call};`);
  if (one) parts.push(`const { default: ${one[1]} } = ${call};`);
  if (some) parts.push(`const { ${some[1].replace(/([\w$]+)\s+as\s+([\w$]+)/g, '$1: $2')} } = ${call};`);
  return parts.join(' ');
}

if (isMainThread) {
  run(new Worker(new URL(import.meta.url)), process.argv[2]);
} else keep();
