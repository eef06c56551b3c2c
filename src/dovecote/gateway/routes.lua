-- Remembers where a caller's requests go, so that a warm request needs no Python. One table per worker.
-- Set before this text: `affinity.lua`, SECRET, TTL (seconds), MOST (entries of one generation), DOMAIN,
-- SERVED (ports of sandboxes that the API answers itself, as text).

-- Of a page that is called by path: it shares its host name with console and API, and must not act as one of theirs.
local APART = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
local FOR_ALL = { -- what it must not say for its host, where browsers remember it
  "clear-site-data", "strict-transport-security", "nel", "report-to", "reporting-endpoints", "alt-svc", "accept-ch",
  "critical-ch", "public-key-pins", "public-key-pins-report-only", "expect-ct",
}
local LONGEST_EVENT = 16384 -- bytes that are held back of a stream whose first event is to be changed

-- key -> {address, ask, session, mark, limited, public}; what is learned in one TTL is dropped after the next.
-- A sandbox's key is its host. A function's is `<host> <credential> <mode> <session> <user>`.
local young, old = {}, {}
local young_specs, old_specs = {}, {} -- "<host> <credential>" -> how that function's requests name their session
local born, count = os.time(), 0

local function turn()
  old, old_specs = young, young_specs
  young, young_specs, count = {}, {}, 0
end

local function age()
  local passed = os.time() - born
  if passed >= 0 and passed < TTL then return end
  turn()
  if passed < 0 or passed >= 2 * TTL then
    turn() -- nobody came for so long that both generations are too old; or the clock was set back, and nobody knows
    born = born + passed
  else
    born = born + TTL
  end
end

-- Clients of E2B may name a sandbox and its port in headers: as good as its own host name.
local function enter_sandbox(handle, headers)
  local id, port = headers:get("e2b-sandbox-id"), headers:get("e2b-sandbox-port")
  if not id or not port or SERVED[port] then return nil end
  if #id > 64 or not id:find("^[a-z0-9]+$") or not port:find("^%d%d?%d?%d?%d?$") then return nil end
  headers:replace(":authority", port .. "-" .. id .. ".box." .. DOMAIN)
  handle:clearRouteCache()
  return "box"
end

-- `/fn/{name}/...` is as good as the function's own host name.
local function enter_function(handle, headers)
  local path = headers:get(":path")
  if path:sub(1, 4) ~= "/fn/" then return nil end
  local name, rest = path:match("^/fn/([a-z0-9][a-z0-9%-]*)(.*)$")
  local after = rest and rest:sub(1, 1)
  if not name or #name > 63 or not (after == "" or after == "?" or after == "/") then return nil end
  if headers:get("x-dovecote-invoke") then return nil end -- the API makes that call
  local port = headers:get(":authority"):match(":%d+$") or ""
  headers:replace(":authority", name .. ".fn." .. DOMAIN .. port)
  headers:replace(":path", after == "/" and rest or "/" .. rest)
  headers:replace("x-forwarded-prefix", "/fn/" .. name)
  handle:streamInfo():dynamicMetadata():set("dovecote.path", "prefix", "/fn/" .. name)
  handle:clearRouteCache()
  return "fn"
end

-- Metadata, not headers: the instance must not see them.
local function send(handle, route)
  handle:streamInfo():dynamicMetadata():set("dovecote", "route", route)
end

local function call_function(handle, headers, host)
  local credential, user = headers:get("x-dovecote-key") or "", headers:get("x-dovecote-user") or "-"
  -- A space parts the fields, so none but the last may have one; what has one is not remembered, and Python refuses it.
  if credential:find(" ", 1, true) then credential = "" end
  local caller = host .. " " .. credential
  local spec = young_specs[caller] or old_specs[caller]
  local mode, session, theirs
  if spec then mode, session, theirs = find(spec, headers) end
  if mode then
    local key = caller .. " " .. mode .. " " .. session .. " " .. (spec.n and "-" or user)
    local route = young[key] or old[key]
    if route and not session:find(" ", 1, true) then
      send(handle, route)
      if not spec.is_header_only then take(spec, headers, mode, theirs) end
      if mode == "mcp-http" and headers:get(":method") == "DELETE" then
        handle:streamInfo():dynamicMetadata():set("dovecote", "ends", "delete")
        young[key], old[key] = nil, nil
      end
      if route.public then headers:remove("x-dovecote-user") end
      if route.limited then
        headers:replace("x-gw-limited", "1")
        handle:clearRouteCache()
      end
      return
    end
  end
  headers:replace("x-gw-ask", caller .. " - - " .. user) -- goes to the wake listener and no further
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local kind = handle:metadata():get("kind")
  if kind == "api" then
    kind = enter_function(handle, headers) or enter_sandbox(handle, headers)
    if not kind then return end
  end
  local host = headers:get(":authority")
  if not host or kind == "app" then return end
  age()
  if kind == "fn" then return call_function(handle, headers, host) end
  local route = young[host] or old[host]
  if route then send(handle, route) end
end

-- Of a function that is called by path.
local function prefix_of(handle)
  local by_path = handle:streamInfo():dynamicMetadata():get("dovecote.path")
  return by_path and by_path.prefix
end

-- Makes the address that an MCP server of 2024 gives its client lead back to this session.
local function mark_address(address, mark, prefix)
  if address:sub(1, 1) == "/" then address = prefix .. address end
  for _, name in ipairs({"sessionId", "session_id"}) do
    local _, last = address:find("[?&]" .. name .. "=")
    if last then return address:sub(1, last) .. mark .. address:sub(last + 1) end
  end
  return address .. (address:find("?", 1, true) and "&" or "?") .. COOKIE .. "=" .. mark .. "-"
end

local function mark_event(event, mark, prefix)
  local marked = ("\n" .. event):gsub("\n(data: ?)([^\r\n]*)", function(name, address)
    return "\n" .. name .. mark_address(address, mark, prefix)
  end, 1)
  return marked:sub(2)
end

-- The stream's first events, until one is of the kind `endpoint`. An event may come in any number of pieces.
local function mark_stream(handle, mark, prefix)
  local held, is_done = "", false
  for chunk in handle:bodyChunks() do
    held = held .. chunk:getBytes(0, chunk:length())
    local whole = {}
    while not is_done do
      local _, last = held:find("\n\r?\n")
      if not last then break end
      local event = held:sub(1, last)
      held = held:sub(last + 1)
      if ("\n" .. event):find("\nevent: ?endpoint[\r\n]") then
        event, is_done = mark_event(event, mark, prefix), true
      end
      whole[#whole + 1] = event
    end
    if #held > LONGEST_EVENT then is_done = true end
    if is_done then whole[#whole + 1] = held end
    chunk:setBytes(table.concat(whole))
    if is_done then return end
  end
end

local function mark_id(headers, mark)
  local theirs = headers:get("mcp-session-id")
  if theirs then headers:replace("mcp-session-id", mark .. theirs) end
end

local function make_room()
  if count >= MOST then turn() end
  count = count + 1
end

local function learn(key, route, text)
  age()
  local caller = key:match("^%S+ %S*")
  if text ~= "-" and caller then
    local known = young_specs[caller] or old_specs[caller]
    if not young_specs[caller] then make_room() end
    young_specs[caller] = known and known.text == text and known or parse_spec(text)
  end
  if route.address then
    make_room()
    young[key] = route
  end
end

-- Of cookies with a prefix only a secure one is kept.
local function set_cookie(headers, pair, seconds, prefix)
  local path = prefix == "" and "/" or prefix
  local secure = pair:sub(1, 2) == "__" and "; Secure" or ""
  headers:add("set-cookie", pair .. "; Max-Age=" .. seconds .. "; Path=" .. path .. "; HttpOnly; SameSite=Lax" .. secure)
end

-- `<address|-> <spec|-> <session|-> <its key|-> <cookie|-> <flags|-> <key of this table>`, see `question.py`.
local function follow(handle, headers, note)
  local address, text, id, session, cookie, flags, key = note:match("^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.+)$")
  if not key then return end
  local mark = session:gsub("%.", "~") .. "."
  local route = {
    address = address ~= "-" and address or nil,
    ask = key,
    session = id ~= "-" and id or nil,
    mark = flags:find("m") and mark or nil,
    limited = flags:find("l") and true or nil,
    public = flags:find("p") and true or nil,
  }
  learn(key, route, text)
  if text == "-" then return end
  local metadata = handle:streamInfo():dynamicMetadata()
  local prefix = prefix_of(handle) or ""
  if route.session and flags:find("[ds]") then metadata:set("dovecote", "route", route) end
  local spec = parse_spec(text)
  if flags:find("h") then headers:replace(spec.header, session) end
  if cookie ~= "-" then set_cookie(headers, cookie, spec.seconds, prefix) end
  if route.mark then mark_id(headers, mark) end
  if flags:find("d") then metadata:set("dovecote", "ends", "delete") end
  if flags:find("s") then
    metadata:set("dovecote", "ends", "stream")
    if (headers:get("content-type") or ""):lower():find("^text/event%-stream") then
      headers:remove("content-length")
      mark_stream(handle, mark, prefix)
    end
  end
end

-- Its cookies are for the path that it is called by, and it clears and rules nothing else of that host.
local function keep_apart(headers, prefix)
  headers:add("content-security-policy", APART)
  for _, name in ipairs(FOR_ALL) do headers:remove(name) end
  local cookies = {}
  for index = 0, headers:getNumValues("set-cookie") - 1 do
    local pair, rest = headers:getAtIndex("set-cookie", index):match("^([^;]*)(.*)$")
    local name = pair:match("^[ \t]*([^=]-)[ \t]*=")
    if name and not OURS[name] then
      for attribute in rest:gmatch(";([^;]*)") do
        local kind = attribute:match("^[ \t]*([^= \t]*)"):lower()
        if kind ~= "path" and kind ~= "domain" then pair = pair .. ";" .. attribute end
      end
      cookies[#cookies + 1] = pair .. "; Path=" .. prefix
    end
  end
  headers:remove("set-cookie")
  for _, cookie in ipairs(cookies) do headers:add("set-cookie", cookie) end
end

-- `x-gw-wake: <secret> deny <status>` or `<secret> route ...`
function envoy_on_response(handle)
  local headers = handle:headers()
  local prefix = prefix_of(handle)
  if prefix then keep_apart(headers, prefix) end
  local note = headers:get("x-gw-wake")
  if not note then
    if headers:get("mcp-session-id") then
      local known = handle:streamInfo():dynamicMetadata():get("dovecote")
      if known and known.route and known.route.mark then mark_id(headers, known.route.mark) end
    end
    return
  end
  headers:remove("x-gw-wake")
  local secret, verb, rest = note:match("^(%S+) (%S+) ?(.*)$")
  if secret ~= SECRET then return end
  if verb == "deny" then
    headers:replace(":status", rest)
  elseif verb == "route" then
    follow(handle, headers, rest)
  end
end
