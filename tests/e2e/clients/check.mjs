// Commands, terminals, files and signed URLs, by E2B's JavaScript SDK.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { after, before, test } from 'node:test'

import {
  AuthenticationError,
  CommandExitError,
  FileNotFoundError,
  InvalidArgumentError,
  Sandbox,
  Template,
  TimeoutError,
  Volume,
} from 'e2b'

let sandbox

before(async () => {
  sandbox = await Sandbox.create({ timeoutMs: 600_000, envs: { OF_THE_SANDBOX: 'yes' } })
})

after(async () => {
  await sandbox.kill()
})

test('a command runs as the user at home with the environment of the sandbox', async () => {
  assert.ok(await sandbox.isRunning())
  const out = []
  const done = await sandbox.commands.run('whoami; pwd; echo $OF_THE_SANDBOX $OWN; echo 漢 >&2', {
    envs: { OWN: 'mine' },
    onStdout: (data) => out.push(data),
  })
  assert.equal(done.stdout, 'user\n/home/user\nyes mine\n')
  assert.equal(out.join(''), done.stdout)
  assert.equal(done.stderr, '漢\n')
  assert.equal(done.exitCode, 0)
  assert.equal((await sandbox.commands.run('whoami; pwd', { user: 'root', cwd: '/tmp' })).stdout, 'root\n/tmp\n')
})

test('failures are told', async () => {
  await assert.rejects(sandbox.commands.run('echo out; exit 7'), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout], [7, 'out\n'])
    return true
  })
  await assert.rejects(sandbox.commands.run('true', { cwd: '/nowhere' }), InvalidArgumentError)
  await assert.rejects(sandbox.commands.run('true', { user: 'nobody-of-that-name' }), AuthenticationError)
  await assert.rejects(sandbox.commands.run('sleep 600', { timeoutMs: 1000 }), TimeoutError)
})

test('a command in the background has input, is listed, entered again and killed', async () => {
  const handle = await sandbox.commands.run('cat; echo end', { background: true, stdin: true })
  await handle.sendStdin('a line\n')
  await handle.closeStdin()
  assert.equal((await handle.wait()).stdout, 'a line\nend\n')

  const long = await sandbox.commands.run('echo begins; sleep 600', { background: true })
  const listed = (await sandbox.commands.list()).find((each) => each.pid === long.pid)
  assert.deepEqual([listed.cmd, listed.args], ['/bin/bash', ['-l', '-c', 'echo begins; sleep 600']])
  await long.disconnect()
  const again = await sandbox.commands.connect(long.pid)
  assert.equal(await again.kill(), true)
  await assert.rejects(again.wait(), CommandExitError)
  assert.equal(await sandbox.commands.kill(long.pid), false)
})

test('a terminal has a size that may change', async () => {
  const seen = []
  const terminal = await sandbox.pty.create({ rows: 20, cols: 80, onData: (data) => seen.push(Buffer.from(data)) })
  await sandbox.pty.resize(terminal.pid, { rows: 33, cols: 77 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
  await terminal.wait()
  assert.match(Buffer.concat(seen).toString(), /33 77/)
})

test('files are written, read, listed, moved and removed', async () => {
  const written = await sandbox.files.write('js/grüße.txt', 'grüße 漢')
  assert.equal(written.path, '/home/user/js/grüße.txt')
  assert.equal(await sandbox.files.read('js/grüße.txt'), 'grüße 漢')
  await sandbox.files.write([
    { path: 'js/a "b".txt', data: 'a' },
    { path: '/tmp/b.txt', data: new Blob(['b']) },
  ])
  assert.equal(await sandbox.files.read('js/a "b".txt'), 'a')
  assert.equal(await sandbox.files.read('/tmp/b.txt'), 'b')
  await sandbox.files.write('js/empty', '')
  assert.equal(await sandbox.files.read('js/empty'), '')
  const names = (await sandbox.files.list('js')).map((each) => each.name)
  assert.deepEqual(names, ['a "b".txt', 'empty', 'grüße.txt'])
  const info = await sandbox.files.getInfo('js/grüße.txt')
  assert.deepEqual([info.type, info.size, info.mode, info.owner], ['file', 11, 0o644, 'user'])
  assert.equal(await sandbox.files.makeDir('js/d'), true)
  assert.equal(await sandbox.files.makeDir('js/d'), false)
  assert.equal((await sandbox.files.rename('js/empty', 'js/d/moved')).path, '/home/user/js/d/moved')
  await sandbox.files.remove('js')
  assert.equal(await sandbox.files.exists('js'), false)
  await assert.rejects(sandbox.files.read('js/none'), FileNotFoundError)
  await assert.rejects(sandbox.files.read('/tmp'), InvalidArgumentError)
})

test('a larger file arrives whole whichever way', async () => {
  const content = randomBytes(5_000_000)
  const digest = createHash('sha256').update(content).digest('hex')
  const whole = content.buffer.slice(content.byteOffset, content.byteOffset + content.length)
  const stream = () => new Blob([content]).stream()
  for (const [data, options] of [[whole, {}], [whole, { gzip: true }], [whole, { useOctetStream: true }], [stream(), {}]]) {
    await sandbox.files.write('large.bin', data, options)
    const sum = await sandbox.commands.run('sha256sum < large.bin')
    assert.equal(sum.stdout.split(' ')[0], digest)
  }
  assert.deepEqual(Buffer.from(await sandbox.files.read('large.bin', { format: 'bytes' })), content)
  assert.equal((await sandbox.files.read('large.bin', { format: 'blob' })).size, content.length)
  let size = 0
  for await (const chunk of await sandbox.files.read('large.bin', { format: 'stream' })) size += chunk.length
  assert.equal(size, content.length)
})

test('changes of a directory are told, and files have metadata', async () => {
  await sandbox.files.makeDir('watched/below')
  const seen = []
  let arrived
  const last = new Promise((resolve) => { arrived = resolve })
  const take = (event) => {
    seen.push(event)
    if (event.name === 'below/last') arrived()
  }
  const watch = await sandbox.files.watchDir('watched', take, { recursive: true, includeEntry: true })
  await sandbox.files.write('watched/first', '123', { metadata: { origin: 'a check' } })
  await sandbox.files.write('watched/below/last', 'x')
  await last
  await watch.stop()
  const first = seen.find((each) => each.name === 'first' && each.entry)
  assert.deepEqual([first.type, first.entry.size, first.entry.path], ['create', 3, '/home/user/watched/first'])
  assert.deepEqual((await sandbox.files.getInfo('watched/first')).metadata, { origin: 'a check' })
  await assert.rejects(sandbox.files.watchDir('nowhere', () => {}), FileNotFoundError)
})

test('signed URLs', async () => {
  const form = new FormData()
  form.append('file', new Blob(['up']), 'any')
  const up = await sandbox.uploadUrl('signed.txt', { useSignatureExpiration: 60 })
  assert.equal((await fetch(up, { method: 'POST', body: form })).status, 200)
  const down = await sandbox.downloadUrl('signed.txt')
  assert.equal(await (await fetch(down)).text(), 'up')
  assert.equal((await fetch(up)).status, 401)
})

test('another client enters the same sandbox, which ends once it is killed', async () => {
  const other = await Sandbox.create({ timeoutMs: 120_000 })
  const same = await Sandbox.connect(other.sandboxId)
  await same.files.write('a', 'x')
  assert.equal(await other.files.read('a'), 'x')
  await other.kill()
  assert.equal(await same.isRunning(), false)
  await assert.rejects(same.commands.run('true'))
})

test('a sandbox is found by its metadata, paused, connected to and snapshotted', async () => {
  const mark = randomBytes(8).toString('hex')
  const made = await Sandbox.create({ timeoutMs: 60_000, metadata: { mark, 'a b': 'c&d' } })
  try {
    const found = await Sandbox.list({ query: { metadata: { mark, 'a b': 'c&d' } } }).nextItems()
    assert.deepEqual(found.map((each) => each.sandboxId), [made.sandboxId])
    assert.equal((await made.getInfo()).state, 'running')
    await made.setTimeout(120_000)
    await made.files.write('note', 'kept')
    assert.ok(await made.pause())
    assert.ok(!(await made.pause()))
    assert.equal((await made.getInfo()).state, 'paused')
    const again = await Sandbox.connect(made.sandboxId)
    assert.equal(await again.files.read('note'), 'kept')
    assert.ok((await again.getMetrics()).length > 0)
    const snapshot = await again.createSnapshot()
    const other = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 })
    assert.equal(await other.files.read('note'), 'kept')
    await other.kill()
    assert.ok(await Sandbox.deleteSnapshot(snapshot.snapshotId))
  } finally {
    await made.kill()
  }
  assert.ok(!(await made.kill()))
})

test('a template is built and used', async () => {
  const name = `js-${randomBytes(8).toString('hex')}`
  const template = Template().fromTemplate('base').runCmd('echo made > /home/user/made')
  const build = await Template.build(template, name)
  assert.ok(await Template.exists(name))
  assert.deepEqual((await Template.getTags(name)).map((each) => each.buildId), [build.buildId])
  const made = await Sandbox.create(name, { timeoutMs: 60_000 })
  assert.equal((await made.files.read('made')).trim(), 'made')
  await made.kill()
})

test('what is said of a sandbox is kept, and calls of the class do the same', async () => {
  const made = await Sandbox.create({ timeoutMs: 60_000 })
  try {
    await Sandbox.setTimeout(made.sandboxId, 300_000)
    const info = await Sandbox.getInfo(made.sandboxId)
    assert.ok(info.endAt.getTime() - Date.now() > 200_000)
    assert.match(made.getHost(3000), new RegExp(`^3000-${made.sandboxId}\\.box\\.`))
    await made.updateNetwork({ denyOut: ['203.0.113.0/24'] })
    assert.deepEqual((await made.getInfo()).network.denyOut, ['203.0.113.0/24'])
    await assert.rejects(Sandbox.create({ network: { allowPublicTraffic: false } }), /no_traffic_token/)
    await made.files.write('kept', 'it')
    await made.commands.run('sleep 600', { background: true })
    assert.ok(await made.pause({ keepMemory: false }))
    const again = await Sandbox.connect(made.sandboxId, { timeoutMs: 60_000 })
    assert.equal(await again.files.read('kept'), 'it')
    assert.deepEqual(await again.commands.list(), [])
    const forks = await again.fork({ count: 2, timeoutMs: 60_000 })
    assert.deepEqual(await Promise.all(forks.map((each) => each.files.read('kept'))), ['it', 'it'])
    await Promise.all(forks.map((each) => each.kill()))
    assert.ok(await Sandbox.kill(made.sandboxId))
  } finally {
    await made.kill()
  }
})

test('git is called by the client', async () => {
  const place = `/home/user/git-${randomBytes(8).toString('hex')}`
  await sandbox.git.init(`${place}/bare`, { bare: true, initialBranch: 'main' })
  await sandbox.git.init(`${place}/mine`, { initialBranch: 'main' })
  await sandbox.git.configureUser('Somebody', 'somebody@example.com')
  await sandbox.files.write(`${place}/mine/note`, 'one')
  await sandbox.git.add(`${place}/mine`)
  await sandbox.git.commit(`${place}/mine`, 'first')
  await sandbox.git.remoteAdd(`${place}/mine`, 'origin', `${place}/bare`)
  await sandbox.git.push(`${place}/mine`, { remote: 'origin', branch: 'main', setUpstream: true })
  await sandbox.git.clone(`${place}/bare`, { path: `${place}/theirs`, branch: 'main' })
  assert.equal(await sandbox.files.read(`${place}/theirs/note`), 'one')
  await sandbox.git.createBranch(`${place}/theirs`, 'work')
  const { currentBranch, branches } = await sandbox.git.branches(`${place}/theirs`)
  assert.deepEqual([currentBranch, branches.sort()], ['work', ['main', 'work']])
  assert.ok((await sandbox.git.status(`${place}/theirs`)).isClean)
})

test('volumes outlive sandboxes, and their files are read without one', async () => {
  const volume = await Volume.create(`js-${randomBytes(8).toString('hex')}`)
  try {
    await volume.writeFile('/deep/note', 'hello', { force: true })
    assert.equal(await volume.readFile('/deep/note'), 'hello')
    await volume.makeDir('/other')
    const paths = (await volume.list('/', { depth: 2 })).map((each) => each.path)
    assert.deepEqual(paths.sort(), ['/deep', '/deep/note', '/other'])
    const made = await Sandbox.create({ timeoutMs: 60_000, volumeMounts: { '/mnt/shared': volume } })
    assert.equal(await made.files.read('/mnt/shared/deep/note'), 'hello')
    await made.kill()
    await volume.remove('/deep')
    assert.ok(!(await volume.exists('/deep/note')))
    assert.equal((await Volume.connect(volume.volumeId)).name, volume.name)
  } finally {
    assert.ok(await Volume.destroy(volume.volumeId))
  }
})

test('a template is built in the background and asked about', async () => {
  const name = `js-${randomBytes(8).toString('hex')}`
  const template = Template().fromTemplate('base').setEnvs({ NAME: name }).runCmd('echo said $NAME; sleep 1')
  const build = await Template.buildInBackground(template, name)
  let status
  const said = []
  do {
    status = await Template.getBuildStatus(build, { logsOffset: said.length })
    said.push(...status.logEntries.map((entry) => entry.message))
    await new Promise((resolve) => setTimeout(resolve, 200))
  } while (['building', 'waiting'].includes(status.status))
  assert.equal(status.status, 'ready')
  assert.ok(said.some((line) => line === `said ${name}`))
})
