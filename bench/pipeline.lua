-- Makes wrk send its requests sixteen at a time.
local SIXTEEN

function init()
  local one = {}
  for i = 1, 16 do one[i] = wrk.format() end
  SIXTEEN = table.concat(one)
end

function request()
  return SIXTEEN
end
