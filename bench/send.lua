-- Makes wrk send the bytes of a file, whatever requests they are: wrk -s send.lua URL -- FILE.
-- wrk formats its request once, after init, and counts the requests in it; so this costs nothing a request.
function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local message = file:read("*a")
  file:close()
  wrk.format = function() return message end
end
