"""Names under which a sandbox's port, a function and an app are reached."""

from __future__ import annotations

from dataclasses import dataclass

ENVD = 49983  # commands and files, as E2B's daemon in a sandbox serves them
INTERPRETER = 49999  # code, as E2B's code interpreter serves it
SERVED = (ENVD, INTERPRETER)  # ports of every sandbox that Dovecote answers itself


@dataclass(frozen=True)
class Addresses:
    """Builds the URLs of one installation. Browsers resolve `*.localhost` themselves."""

    domain: str
    port: int
    tls_port: int = 0

    def _url(self, host: str) -> str:
        return f"http://{host}:{self.port}" if self.port != 80 else f"http://{host}"

    def console(self) -> str:
        return self._url(self.domain)

    def box(self, slug: str, port: int) -> str:
        return self._url(f"{port}-{slug}.box.{self.domain}")

    def boxes(self, scheme: str) -> str:
        """What the names of sandboxes' ports end in, with the port where a URL would need it."""
        port = self.tls_port if scheme == "https" and self.tls_port else self.port
        domain = f"box.{self.domain}"
        return domain if (scheme, port) in (("http", 80), ("https", 443)) else f"{domain}:{port}"

    def function(self, name: str) -> str:
        return self._url(f"{name}.fn.{self.domain}")

    def function_path(self, name: str) -> str:
        """The same function on the bare host, where names of hosts are hard to come by."""
        return f"{self.console()}/fn/{name}/"

    def app(self, name: str) -> str:
        return self._url(f"{name}.app.{self.domain}")
