import express from 'express'
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'

const here = import.meta.dirname
const store = path.join(here, 'data', 'messages.json')
const port = Number(process.env.PORT ?? 3000)
const Message = z.object({ author: z.string().trim().min(1).max(40), text: z.string().trim().min(1).max(280) })

async function load() {
  try {
    return JSON.parse(await readFile(store, 'utf8'))
  } catch (error) {
    if (error.code === 'ENOENT') return []
    throw error
  }
}

async function save(messages) {
  await mkdir(path.dirname(store), { recursive: true })
  await writeFile(`${store}.new`, JSON.stringify(messages))
  await rename(`${store}.new`, store)
}

// Two letters that arrive at once must not overwrite each other.
let line = Promise.resolve()
function inTurn(work) {
  const turn = line.then(work)
  line = turn.catch(() => {})
  return turn
}

const app = express()
app.use(express.json({ limit: '16kb' }))

app.get('/api/messages', async (request, response) => {
  const messages = await load()
  const newest = new Date(messages.at(-1)?.at ?? Date.now())
  response.json({
    newest: formatDistanceToNow(newest, { addSuffix: true }),
    messages: messages
      .map((message) => ({ ...message, age: formatDistanceToNow(new Date(message.at), { addSuffix: true }) }))
      .reverse(),
  })
})

app.post('/api/messages', async (request, response) => {
  const parsed = Message.safeParse(request.body)
  if (!parsed.success) return response.status(400).json({ error: 'A letter needs a name and a text.' })
  const message = await inTurn(async () => {
    const messages = await load()
    const added = { id: messages.length + 1, ...parsed.data, at: new Date().toISOString() }
    await save([...messages, added].slice(-500))
    return added
  })
  response.status(201).json(message)
})

// An answer that takes its time, to see how the app scales.
app.get('/api/slow', async (request, response) => {
  const wanted = Number(request.query.ms ?? 300)
  const ms = Number.isFinite(wanted) ? Math.min(Math.max(wanted, 0), 5000) : 300
  await sleep(ms)
  response.json({ slept: ms })
})

app.use(express.static(path.join(here, 'dist')))

const server = app.listen(port, '0.0.0.0', () => console.log(`Pigeon Post listens on ${port}`))
process.on('SIGTERM', () => server.close(() => process.exit(0)))
