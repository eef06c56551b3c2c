"""The one port: Envoy in front, Python where Envoy has to ask."""

from dovecote.gateway.envoy import stop_envoy
from dovecote.gateway.gateway import Gateway
from dovecote.gateway.question import Answer, Ask, Headers
from dovecote.gateway.stats import Load
from dovecote.gateway.wake import Wake

__all__ = ["Answer", "Ask", "Gateway", "Headers", "Load", "Wake", "stop_envoy"]
