-- Finds what in a request names its session, as `affinity.py` does, and takes out of it what only we understand.
-- A spec is `<letters of modes>,<header>,<life of the cookie>,<path of the stream>`.

local COOKIE, STATELESS, SESSIONLESS_SINCE = "dovecote-session", "stateless", "2026-07-28"
local OF_HOST, OF_PATH = "__Host-" .. COOKIE, "__Secure-" .. COOKIE -- by TLS
local OURS = {[COOKIE] = true, [OF_HOST] = true, [OF_PATH] = true}
local IN_QUERY = {sessionId = true, session_id = true, [COOKIE] = true}

local function parse_spec(text)
  local letters, header, seconds, path = text:match("^(%a+),([^,]+),(%d+),(.+)$")
  if not letters then return nil end
  local spec = {text = text, header = header, seconds = seconds, path = path}
  for letter in letters:gmatch(".") do spec[letter] = true end
  spec.is_header_only = letters == "h"
  return spec
end

-- `{key}.{theirs}` in its parts.
local function unmark(value)
  local key, theirs = value:match("^([%w_:@~%-]+)%.(.*)$")
  if key and #key <= 200 then return (key:gsub("~", ".")), theirs end
end

-- The key, and the path as the server knows it.
local function in_query(path)
  local at = 1
  while true do
    local first, last, name, value = path:find("[?&]([^=&?]+)=([^&]*)", at)
    if not first then return nil end
    if IN_QUERY[name] then
      local key, theirs = unmark(value)
      if key and name == COOKIE then
        local rest = path:sub(last + 1)
        if path:sub(first, first) == "?" then rest = rest:gsub("^&", "?") end
        return key, path:sub(1, first - 1) .. rest
      elseif key then
        return key, path:sub(1, first) .. name .. "=" .. theirs .. path:sub(last + 1)
      end
    end
    at = last + 1
  end
end

local function pairs_of(cookie)
  local following = cookie:gmatch("[^;]+")
  return function()
    local pair = following()
    if not pair then return nil end
    pair = pair:match("^[ \t]*(.-)[ \t]*$")
    local name, value = pair:match("^([^=]*)=?(.*)$")
    return pair, name, value
  end
end

-- By TLS the plain name is not looked at; without it, browsers send no other.
local function in_cookie(cookie, headers)
  local kept = headers:get("x-forwarded-prefix") and OF_PATH or OF_HOST
  local found, plain
  for _, name, value in pairs_of(cookie) do
    if name == kept and value ~= "" then found = found or value end
    if name == COOKIE and value ~= "" then plain = plain or value end
  end
  return found or (headers:get("x-forwarded-proto") ~= "https" and plain or nil)
end

local function is_sessionless(headers)
  local revision = headers:get("mcp-protocol-version")
  return revision and revision:find("^%d%d%d%d%-%d%d%-%d%d$") and revision >= SESSIONLESS_SINCE
end

local function begins_stream(spec, headers)
  return spec.s and headers:get(":method") == "GET" and headers:get(":path"):match("^[^?]*") == spec.path
end

-- Mode, key, and what is left for the server; nothing where a session begins.
local function find(spec, headers)
  if spec.is_header_only then
    local key = headers:get(spec.header)
    if key and key ~= "" then return "header", key end
    return nil
  end
  if spec.n then return "none", "" end
  local id = spec.m and headers:get("mcp-session-id")
  if id then
    local key, theirs = unmark(id)
    return "mcp-http", key or "", theirs
  end
  local method = headers:get(":method")
  if spec.s and method == "POST" then
    local key, path = in_query(headers:get(":path"))
    if key and key ~= "" then return "mcp-sse", key, path end
  end
  local key = spec.h and headers:get(spec.header)
  if key and key ~= "" then return "header", key end
  local cookie = spec.c and headers:get("cookie")
  key = cookie and in_cookie(cookie, headers)
  if key then return "cookie", key end
  if spec.h or spec.c or begins_stream(spec, headers) then return nil end
  if spec.m and method == "POST" and not is_sessionless(headers) then return nil end
  return "none", STATELESS
end

local function take(spec, headers, mode, theirs)
  local cookie = spec.c and headers:get("cookie")
  if cookie and cookie:find(COOKIE, 1, true) then
    local kept = {}
    for pair, name in pairs_of(cookie) do
      if not OURS[name] then kept[#kept + 1] = pair end
    end
    if #kept > 0 then headers:replace("cookie", table.concat(kept, "; ")) else headers:remove("cookie") end
  end
  if mode == "mcp-http" and theirs then
    headers:replace("mcp-session-id", theirs)
  elseif mode == "mcp-sse" and theirs then
    headers:replace(":path", theirs)
  elseif not mode and begins_stream(spec, headers) then
    headers:remove("accept-encoding") -- its first event is to be read and changed
  end
end
