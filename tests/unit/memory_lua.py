"""The gateway's Lua in a state of its own, with what Envoy hands to it. All that crosses is text and numbers."""

from __future__ import annotations

from typing import Any

from lupa.luajit21 import LuaRuntime

from tests.unit.memory_host import Clock
from tests.unit.memory_servers import Fields, Response

HANDLE = """
local NOW = 0
os.time = function() return NOW end
function set_time(seconds) NOW = seconds end

local Headers, Told, Chunk, Handle = {}, {}, {}, {}
for _, class in ipairs({Headers, Told, Chunk, Handle}) do class.__index = class end
function Headers:get(name)
  for _, field in ipairs(self) do if field[1] == name then return field[2] end end
end
function Headers:getAtIndex(name, index)
  for _, field in ipairs(self) do
    if field[1] == name then
      if index == 0 then return field[2] end
      index = index - 1
    end
  end
end
function Headers:getNumValues(name)
  local count = 0
  while self:getAtIndex(name, count) do count = count + 1 end
  return count
end
function Headers:add(name, value) self[#self + 1] = {name, tostring(value)} end
function Headers:remove(name)
  for at = #self, 1, -1 do if self[at][1] == name then table.remove(self, at) end end
end
function Headers:replace(name, value) self:remove(name) self:add(name, value) end
function Told:set(space, key, value)
  self.spaces[space] = self.spaces[space] or {}
  self.spaces[space][key] = value
end
function Told:get(space) return self.spaces[space] end
function Chunk:length() return #self.text end
function Chunk:getBytes(first, length) return self.text:sub(first + 1, first + length) end
function Chunk:setBytes(text) self.text = text end
function Handle:headers() return self.fields end
function Handle:metadata() return {get = function(_, name) return name == "kind" and self.kind or nil end} end
function Handle:streamInfo() return {dynamicMetadata = function() return self.told end} end
function Handle:connection() return {ssl = function() return nil end} end
function Handle:clearRouteCache() self.is_routed_again = true end
function Handle:bodyChunks()
  local at = 0
  return function() at = at + 1 return self.chunks[at] end
end
function new_handle()
  local told = setmetatable({spaces = {}}, Told)
  return setmetatable({told = told, is_routed_again = false, chunks = {}, fields = setmetatable({}, Headers)}, Handle)
end
function clear(handle) handle.fields, handle.chunks = setmetatable({}, Headers), {} end
function add_header(handle, name, value) handle.fields:add(name, value) end
function add_chunk(handle, text) handle.chunks[#handle.chunks + 1] = setmetatable({text = text}, Chunk) end
function tell(handle, space, key, value) handle.told:set(space, key, value) end
function told(handle, key)
  local ours = handle.told.spaces["dovecote"]
  return ours and ours[key]
end
"""


class Script:
    def __init__(self, text: str, clock: Clock) -> None:
        self._clock = clock
        self._runtime = LuaRuntime(encoding="latin-1", register_eval=False, register_builtins=False)
        self._runtime.execute(HANDLE)
        self._runtime.execute(text)

    def call(self, name: str, *arguments: Any) -> Any:
        return self._runtime.globals()[name](*arguments)

    def run(self, name: str, handle: Any) -> None:
        self.call("set_time", int(self._clock.monotonic()))
        self.call(name, handle)


class Handle:
    """A request in one state of Lua, and then its response."""

    def __init__(self, script: Script, fields: Fields) -> None:
        self._script = script
        self._handle = script.call("new_handle")
        self._put(fields)

    def _put(self, fields: Fields) -> None:
        self._script.call("clear", self._handle)
        for name, value in fields:
            self._script.call("add_header", self._handle, name, value)

    @property
    def fields(self) -> Fields:
        return [(str(each[1]), str(each[2])) for each in self._handle["fields"].values()]

    @property
    def is_routed_again(self) -> bool:
        return bool(self._handle["is_routed_again"])

    def tell(self, space: str, key: str, value: str) -> None:
        self._script.call("tell", self._handle, space, key, value)

    def told(self, key: str) -> Any:
        """What our Lua left in its own metadata."""
        return self._script.call("told", self._handle, key)

    def request(self, kind: str = "") -> None:
        self._handle["kind"] = kind
        self._script.run("envoy_on_request", self._handle)

    def respond(self, response: Response) -> None:
        """Changes it as our Lua does."""
        self._put([*response.fields, (":status", str(response.status))])
        for text in response.chunks:
            self._script.call("add_chunk", self._handle, text)
        self._script.run("envoy_on_response", self._handle)
        fields = self.fields
        response.status = int(next(value for name, value in fields if name == ":status"))
        response.fields = [each for each in fields if each[0] != ":status"]
        response.chunks = [str(each["text"]) for each in self._handle["chunks"].values()]
