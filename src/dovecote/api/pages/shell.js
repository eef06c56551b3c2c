"use strict";
// One terminal of one session. Its number is kept in the tab, so that a reload or a lost connection comes back to it.
const SESSION = location.pathname.split("/").pop();
const KEY = "dovecote-key", NUMBER = `dovecote-terminal-${SESSION}`;
const WINDOW = 1 << 20, SAY_EVERY = 1 << 16; // bytes of output on the way, and shown before we say so
const PATIENCE = 60000, AGAIN = 1000; // milliseconds

const $ = (id) => document.getElementById(id);
const typed = new TextEncoder();
let socket = null, ticket = null, offset = 0, lostAt = 0;

const terminal = new Terminal({
  cursorBlink: true, fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace", fontSize: 14, scrollback: 10000,
  theme: { background: "#14161a", foreground: "#e8e6e1", cursor: "#7fb2d6", selectionBackground: "#3a4a59" },
});
const fit = new FitAddon.FitAddon();
terminal.loadAddon(fit);

function show(kind, text) {
  $("state").className = kind;
  $("state").textContent = text;
}

function problem(text) {
  $("problem").textContent = text || "";
  $("problem").hidden = !text;
}

function ask(why) {
  sessionStorage.removeItem(KEY);
  show("closed", "no key");
  problem(why);
  $("ask").hidden = false;
  $("terminal").hidden = $("forget").hidden = $("again").hidden = true;
  $("key").focus();
}

async function fetchTicket() {
  const answer = await fetch(`/v1/sessions/${SESSION}/terminal:ticket`, {
    method: "POST", headers: { authorization: `Bearer ${sessionStorage.getItem(KEY)}` },
  });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body.ticket;
  const error = new Error(body.error ? `${body.error.message} [${body.error.code}]` : `status ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function connect() {
  $("ask").hidden = $("again").hidden = true;
  $("terminal").hidden = false;
  $("forget").hidden = !sessionStorage.getItem(KEY);
  show("busy", "connecting");
  try {
    const admission = ticket || await fetchTicket();
    ticket = null;
    open(admission);
  } catch (error) {
    if (error.status === 401) ask("That key is not one of this server's.");
    else if (error.status && error.status < 500) { show("closed", "closed"); problem(error.message); }
    else again(error.message);
  }
}

function open(admission) {
  fit.fit();
  const number = sessionStorage.getItem(NUMBER);
  const query = new URLSearchParams({ ticket: admission, rows: terminal.rows, cols: terminal.cols, window: WINDOW });
  if (number) { query.set("number", number); query.set("offset", offset); }
  const here = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/sessions/${SESSION}/terminal?${query}`);
  let sent = 0, seen = 0, isOver = false;
  here.binaryType = "arraybuffer";
  here.onopen = () => { socket = here; problem(""); };
  here.onmessage = (event) => {
    if (typeof event.data === "string") { isOver = hear(JSON.parse(event.data)) || isOver; return; }
    offset += event.data.byteLength;
    terminal.write(new Uint8Array(event.data), () => {
      sent += event.data.byteLength;
      if (sent - seen < SAY_EVERY || here.readyState !== WebSocket.OPEN) return;
      seen = sent;
      here.send(JSON.stringify({ type: "seen", bytes: seen }));
    });
  };
  here.onclose = () => {
    if (socket === here) socket = null;
    if (!isOver) again("The connection is lost.");
  };
}

// Answers whether this was the end.
function hear(message) {
  if (message.type === "started" || message.type === "attached") {
    sessionStorage.setItem(NUMBER, message.number);
    lostAt = 0;
    show("open", "connected");
    terminal.focus();
  } else if (message.type === "dropped") {
    offset += message.bytes;
    terminal.write(`\r\n\x1b[2m[${message.bytes} bytes of output are not kept any more]\x1b[0m\r\n`);
  } else if (message.type === "input_dropped") {
    problem(`The program does not read what is typed: ${message.bytes} bytes were lost.`);
  } else if (message.type === "exited") {
    const how = message.signal === null ? `with code ${message.exit_code}` : `by signal ${message.signal}`;
    end(`ended ${how}`, "");
    return true;
  } else if (message.type === "error") {
    const wasKept = sessionStorage.getItem(NUMBER) !== null && message.status === 404;
    end("closed", wasKept ? "The shell that was here is gone." : `${message.error.message} [${message.error.code}]`);
    return true;
  }
  return false;
}

function end(state, why) {
  sessionStorage.removeItem(NUMBER);
  offset = 0;
  show("closed", state);
  problem(why);
  $("again").hidden = !sessionStorage.getItem(KEY);
}

function again(why) {
  lostAt = lostAt || Date.now();
  show("busy", "trying again");
  if (!sessionStorage.getItem(KEY)) { show("closed", "closed"); problem(`${why} A ticket is good once: ask for a new link, or open it with a key.`); $("ask").hidden = false; return; }
  if (Date.now() - lostAt > PATIENCE) { show("closed", "closed"); problem(why); $("again").hidden = false; return; }
  setTimeout(connect, AGAIN);
}

function send(data) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(data);
}

terminal.onData((text) => send(typed.encode(text)));
terminal.onBinary((text) => send(Uint8Array.from(text, (each) => each.charCodeAt(0))));
terminal.onResize(({ rows, cols }) => {
  $("size").textContent = `${cols} × ${rows}`;
  send(JSON.stringify({ type: "resize", rows, cols }));
});
new ResizeObserver(() => { if (!$("terminal").hidden) fit.fit(); }).observe($("terminal"));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  connect();
});
$("again").addEventListener("click", () => { terminal.reset(); lostAt = 0; connect(); });
$("forget").addEventListener("click", () => { if (socket) { socket.onclose = null; socket.close(); } ask(""); });

$("session").textContent = SESSION;
terminal.open($("terminal"));
const fragment = new URLSearchParams(location.hash.slice(1));
if (fragment.has("ticket")) {
  ticket = fragment.get("ticket");
  history.replaceState(null, "", location.pathname); // it is used up in a moment and belongs in no history
}
if (ticket || sessionStorage.getItem(KEY)) connect();
else ask("");
