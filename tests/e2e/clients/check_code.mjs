// E2B's code interpreter for JavaScript, as its users have it.
import assert from 'node:assert/strict';
import { Sandbox } from '@e2b/code-interpreter';

const sandbox = await Sandbox.create({ timeoutMs: 300_000 });
try {
  const out = [];
  await sandbox.runCode('x = 1');
  const execution = await sandbox.runCode('print("out")\nx + 1', { onStdout: (message) => out.push(message.line) });
  assert.equal(execution.text, '2');
  assert.equal(out.join(''), 'out\n');
  assert.equal(typeof execution.executionCount, 'number');

  const failed = await sandbox.runCode('1/0');
  assert.equal(failed.error.name, 'ZeroDivisionError');

  const drawn = await sandbox.runCode('import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()');
  assert.ok(drawn.results[0].png);
  assert.equal(drawn.results[0].chart.type, 'line');

  const context = await sandbox.createCodeContext({ language: 'javascript', cwd: '/tmp' });
  assert.equal(context.cwd, '/tmp');
  await sandbox.runCode('const y = 5', { context });
  assert.equal((await sandbox.runCode('y', { context })).text, '5');
  assert.ok((await sandbox.listCodeContexts()).some((each) => each.id === context.id));
  await sandbox.restartCodeContext(context);
  assert.equal((await sandbox.runCode('typeof y', { context })).text, 'undefined');
  await sandbox.removeCodeContext(context);
  await assert.rejects(sandbox.runCode('1', { context }));

  await assert.rejects(sandbox.runCode('import time\nwhile True: time.sleep(0.01)', { timeoutMs: 2000 }));
  assert.equal((await sandbox.runCode('x')).text, '1');
} finally {
  await sandbox.kill();
}
