-- Picks the cluster of an app that has, or lately had, instances; any other goes to the wake listener.
function envoy_on_route(handle)
  local host = handle:headers():get(":authority")
  local name = host and host:lower():match("^([a-z0-9-]+)%.app%.")
  local cluster = name and ("app/" .. name)
  if cluster and handle:getCluster(cluster) then return cluster end
  return "sessions"
end
