-- Remembers where a caller's requests go, so that a warm request needs no Python. One table per worker.
-- Set before this text: SECRET, TTL (seconds), DEFAULT_HEADER, MOST (entries of one generation), DOMAIN,
-- SERVED (ports of sandboxes that the API answers itself, as text).

local young, old = {}, {}             -- key -> address; what is learned in one TTL is dropped after the next
local young_names, old_names = {}, {} -- host -> name of its function's affinity header
local born, count = os.time(), 0

local function turn()
  old, old_names = young, young_names
  young, young_names, count = {}, {}, 0
end

local function age()
  local passed = os.time() - born
  if passed < TTL then return end
  turn()
  if passed >= 2 * TTL then
    turn() -- nobody came for so long that both generations are too old
    born = born + passed
  else
    born = born + TTL
  end
end

-- Clients of E2B may name a sandbox and its port in headers: as good as its own host name.
local function enter(handle, headers)
  local id, port = headers:get("e2b-sandbox-id"), headers:get("e2b-sandbox-port")
  if not id or not port or SERVED[port] then return false end
  if #id > 64 or not id:find("^[a-z0-9]+$") or not port:find("^%d%d?%d?%d?%d?$") then return false end
  headers:replace(":authority", port .. "-" .. id .. ".box." .. DOMAIN)
  handle:clearRouteCache()
  return true
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if handle:metadata():get("is_api") and not enter(handle, headers) then return end
  age()
  local host = headers:get(":authority")
  if not host then return end
  local key = host
  local credential = headers:get("x-dovecote-key")
  local user = headers:get("x-dovecote-user")
  local session = headers:get(young_names[host] or old_names[host] or DEFAULT_HEADER)
  local ask
  if credential or user or session then
    -- A space parts the fields, so none but the last may have one; what has one is not remembered, and Python refuses it.
    credential, session = credential or "", session or ""
    if credential:find(" ", 1, true) then credential = "" end
    if session:find(" ", 1, true) then session = "" end
    key = host .. " " .. credential .. " " .. session .. " " .. (user or "-")
    ask = key
  end
  local address = young[key] or old[key]
  if address then
    -- Metadata, not headers: the instance must not see them.
    local metadata = handle:streamInfo():dynamicMetadata()
    metadata:set("dovecote", "address", address)
    if ask then metadata:set("dovecote", "ask", ask) end
  elseif ask then
    headers:replace("x-gw-ask", ask) -- goes to the wake listener and no further
  end
end

-- `x-gw-wake: <secret> deny <status>` or `<secret> route <address|-> <affinity header|-> <new session|-> <key>`.
function envoy_on_response(handle)
  local headers = handle:headers()
  local note = headers:get("x-gw-wake")
  if not note then return end
  headers:remove("x-gw-wake")
  local secret, verb, rest = note:match("^(%S+) (%S+) ?(.*)$")
  if secret ~= SECRET then return end
  if verb == "deny" then
    headers:replace(":status", rest)
  elseif verb == "route" then
    local address, name, session, key = rest:match("^(%S+) (%S+) (%S+) (.+)$")
    if not key then return end
    if session ~= "-" then headers:replace(name, session) end
    if address ~= "-" then
      age()
      if count >= MOST then turn() end
      young[key], count = address, count + 1
      if name ~= "-" then young_names[key:match("^%S+")] = name end
    end
  end
end
