-- Envoy's transcoder drops the fields of a JSON body that it does not know, and takes the last of two that have one
-- name. This refuses both, and what is not JSON by RFC 8259, before the transcoder reads it. It stands behind fields.lua,
-- which is made of the contracts: BODIES has the calls with a body, and FIELDS the names of each message's fields, in both
-- spellings, each with the message that the field holds, if any.

-- Values, and escapes in strings, that a body may have: many times what a request has. Millions fit into a body, and
-- would keep the gateway busy for half a second.
local MOST = 20000
local left  -- of MOST, in the body that is read
local NOTHING = {}  -- for a value of a field that holds no message: if it is an object, the transcoder refuses it

-- The names that a call's body may have; nil for calls without a body. To the transcoder, slashes at the end of a path,
-- and before the verb of a method such as `:cancel`, are not there.
local function names_of(verb, path)
  path = path:match("^[^?]*"):gsub("/+$", ""):gsub("/+(:[^/:]*)$", "%1")
  for _, form in ipairs(BODIES) do
    if form.verb == verb and path:find(form.path) then return FIELDS[form.message] end
  end
end

-- The position after a string that begins at `at`; nil when it has no end, or too many escapes.
local function after_string(text, at)
  at = at + 1
  while left >= 0 do
    local found = text:find('["\\]', at)
    if not found then return nil end
    if text:byte(found) == 34 then return found + 1 end
    at, left = found + 2, left - 1
  end
end

-- What is wrong with a body; nil for nothing.
local function wrong(text, names)
  local malformed = "the body is not JSON, at its byte "
  local outer = {}  -- what surrounds the value that is read: {names, seen} of an object, {names} of an array
  local inner = nil
  local at = text:find("[^ \t\r\n]")
  if not at then return nil end  -- an empty body is a message without fields
  local value = true  -- whether a value is next; else a comma or an end
  left = MOST
  local first = false  -- whether an object or array has just begun, which may end at once
  repeat
    local byte = text:byte(at)
    if not value or first and (byte == 125 or byte == 93) then
      if byte == (inner.seen and 125 or 93) then  -- } or ]
        inner = table.remove(outer)
        at, value, first = at + 1, false, false
      elseif byte == 44 and not first then  -- a comma
        at, value = text:find("[^ \t\r\n]", at + 1), true
        if not at then return malformed .. #text end
        byte = text:byte(at)
      else
        return malformed .. at
      end
    end
    if value then
      first, left = false, left - 1
      if left < 0 then return "the body has too many values" end
      local below = names
      if inner then
        below = inner.names
        if inner.seen then
          local ends = byte == 34 and after_string(text, at)
          if not ends then return malformed .. at end
          local name = text:sub(at + 1, ends - 2)
          local field = below[name]
          if not field and below ~= NOTHING then
            return #name > 64 and "a name in the body is no field" or name .. ": there is no such field"
          end
          local key = field and field.key or name
          if inner.seen[key] then return (field and name or "a field") .. ": it is there twice" end
          inner.seen[key] = true
          at = text:match("^[ \t\r\n]*:[ \t\r\n]*()", ends)
          if not at or at > #text then return malformed .. ends end
          byte = text:byte(at)
          below = field and field.message and FIELDS[field.message] or NOTHING
        end
      end
      if byte == 123 or byte == 91 then  -- { or [
        if #outer > 100 then return "the body is nested too deeply" end
        outer[#outer + 1] = inner or false
        inner = {names = below, seen = byte == 123 and {} or nil}
        at, first = at + 1, true
      else
        at = byte == 34 and after_string(text, at) or text:match("^[%w+.-]+()", at)
        if not at then return malformed .. #text end
        value = false
      end
    end
    at = text:find("[^ \t\r\n]", at)
  until not inner or not at
  if inner then return malformed .. #text end
  if at then return malformed .. at end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  -- Without a verified token the call is refused, and nobody waits for its body.
  if not headers:get("x-jwt-payload") then return end
  local names = names_of(headers:get(":method"), headers:get(":path"))
  local body = names and handle:body()
  if not body then return end
  local told = wrong(body:getBytes(0, body:length()), names)
  if told then handle:respond({[":status"] = "400"}, told) end
end
