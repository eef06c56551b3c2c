import { Bird, Send } from 'lucide-react'
import { useCallback, useEffect, useState } from 'react'

export default function App() {
  const [messages, setMessages] = useState([])
  const [author, setAuthor] = useState('')
  const [text, setText] = useState('')
  const [problem, setProblem] = useState('')

  const load = useCallback(async () => {
    const response = await fetch('/api/messages')
    if (!response.ok) return setProblem(`The loft does not answer (${response.status}).`)
    setProblem('')
    setMessages((await response.json()).messages)
  }, [])

  useEffect(() => {
    load()
    const timer = setInterval(load, 5000)
    return () => clearInterval(timer)
  }, [load])

  async function send(event) {
    event.preventDefault()
    const response = await fetch('/api/messages', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ author, text }),
    })
    if (!response.ok) return setProblem((await response.json()).error)
    setText('')
    await load()
  }

  return (
    <main>
      <h1>
        <Bird aria-hidden /> Pigeon Post
      </h1>
      <form onSubmit={send}>
        <input value={author} onChange={(e) => setAuthor(e.target.value)} placeholder="Your name" required />
        <input value={text} onChange={(e) => setText(e.target.value)} placeholder="A short message" required />
        <button type="submit">
          <Send aria-hidden size={16} /> Send
        </button>
      </form>
      {problem && <p role="alert">{problem}</p>}
      <ul>
        {messages.map((message) => (
          <li key={message.id}>
            <strong>{message.author}</strong> <small>{message.age}</small>
            <p>{message.text}</p>
          </li>
        ))}
      </ul>
    </main>
  )
}
