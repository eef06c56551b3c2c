-- On the wake listener, after Python has answered: takes out of a request what only we understand.
function envoy_on_request(handle)
  local told = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.ext_authz")
  local spec = told and told["x-gw-spec"] and parse_spec(told["x-gw-spec"])
  if not spec then return end
  local headers = handle:headers()
  local mode, _, theirs = find(spec, headers)
  take(spec, headers, mode, theirs)
end
