"""Which system calls a program in a sandbox may make, as an OCI seccomp section."""

from __future__ import annotations

import platform
from typing import Any

from dovecote.errors import Unsupported

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

NAMESPACE_FLAGS = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}

# Unix, IPv4, IPv6, netlink. The others are old or rare kernel code that no program here needs.
SOCKET_FAMILIES = (1, 2, 10, 16)

# Linux, 32-bit layout, UNAME26, both, and "tell me which it is".
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

ALLOWED: dict[str, str] = {
    "files": """
        access chdir chmod chown chroot close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
        fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync flock fstat fstatfs fsync
        ftruncate futimesat getcwd getdents getdents64 lchown link linkat lseek lstat mkdir mkdirat mknod mknodat
        name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
        readlink readlinkat readv rename renameat renameat2 rmdir sendfile splice stat statfs statx symlink symlinkat
        sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
        cachestat
    """,
    "extended attributes": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr lremovexattr lsetxattr
        removexattr setxattr
    """,
    "watching": "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch",
    "memory": """
        brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mprotect
        mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
        process_mrelease remap_file_pages get_mempolicy
    """,
    "processes": """
        arch_prctl capget capset execve execveat exit exit_group fork getcpu getegid geteuid getgid getgroups getpgid
        getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get
        ioprio_set kill pidfd_getfd pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev
        ptrace sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        sched_yield setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid
        setrlimit setsid setuid tgkill times tkill vfork wait4 waitid
    """,
    "threads": """
        futex futex_requeue futex_wait futex_waitv futex_wake get_robust_list rseq set_robust_list set_tid_address
    """,
    "signals": """
        eventfd eventfd2 pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4
    """,
    "time": """
        alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create
        timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
    """,
    "waiting": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old poll
        ppoll pselect6 select io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
    """,
    "network": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
        sendmsg sendto setsockopt shutdown socketpair
    """,
    "between processes": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2
        semctl semget semop semtimedop shmat shmctl shmdt shmget
    """,
    "own limits and the machine": """
        getrandom landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp sysinfo uname
    """,
}

# Named, so that a program gets "not permitted"; what nobody named gets "no such call", as from an older kernel,
# which is what programs know how to fall back from.
DENIED: dict[str, str] = {
    "mounting": """
        fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root umount umount2
    """,
    "namespaces": "setns unshare",
    "keys": "add_key keyctl request_key",
    "wide or young kernel code": """
        bpf fanotify_init fanotify_mark io_uring_enter io_uring_register io_uring_setup perf_event_open userfaultfd
    """,
    "handles past permissions": "open_by_handle_at",
    "the machine": """
        acct adjtimex clock_adjtime clock_settime delete_module finit_module init_module ioperm iopl kexec_file_load
        kexec_load quotactl quotactl_fd reboot setdomainname sethostname settimeofday swapoff swapon syslog vhangup
    """,
    "other": "kcmp lookup_dcookie mbind migrate_pages modify_ldt move_pages set_mempolicy",
}


# On btrfs anybody may make a subvolume or a snapshot, and what is in it counts for no limit of a volume. So of the
# commands of its type only those pass that every file system has: FICLONE, FICLONERANGE, FIDEDUPERANGE (linux/fs.h).
BTRFS_TYPE = 0x94
SHARED_COMMANDS = (0x40049409, 0x4020940D, 0xC0189436)


def profile(machine: str | None = None) -> dict[str, Any]:
    """The `linux.seccomp` section for `machine` (as `platform.machine()` has it). Programs of another architecture,
    32-bit ones included, are killed: their calls have other numbers and older code behind them.

    Raises Unsupported for a machine that we have no profile for.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise Unsupported(
            f"no seccomp profile for {machine}", code="architecture", hint=f"use one of {', '.join(ARCHITECTURES)}"
        )
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": [ARCHITECTURES[machine]],
        "syscalls": [
            {"names": sorted(names(ALLOWED)), "action": "SCMP_ACT_ALLOW"},
            {"names": sorted(names(DENIED)), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
            *_clone(),
            *_socket(),
            *_ioctl(),
            *[_rule("personality", "SCMP_CMP_EQ", value) for value in PERSONALITIES],
        ],
    }


def names(groups: dict[str, str]) -> set[str]:
    return {name for group in groups.values() for name in group.split()}


def _clone() -> list[dict[str, Any]]:
    every = sum(NAMESPACE_FLAGS.values())
    # clone3 passes its flags in memory, where a filter cannot look: as unknown, so that libc falls back to clone.
    return [
        _rule("clone", "SCMP_CMP_MASKED_EQ", every, second=0),
        *[_rule("clone", "SCMP_CMP_MASKED_EQ", flag, second=flag, errno=EPERM) for flag in NAMESPACE_FLAGS.values()],
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
    ]


def _socket() -> list[dict[str, Any]]:
    return [
        *[_rule("socket", "SCMP_CMP_EQ", family) for family in SOCKET_FAMILIES],
        _rule("socket", "SCMP_CMP_GT", max(SOCKET_FAMILIES), errno=EAFNOSUPPORT),
    ]


def _ioctl() -> list[dict[str, Any]]:
    """Every command whose type differs from BTRFS_TYPE in a bit at least. The kernel reads the lower 32 bits only."""
    differs = [(1 << bit, ~(BTRFS_TYPE << 8) & 1 << bit) for bit in range(8, 16)]
    return [
        *[_rule("ioctl", "SCMP_CMP_MASKED_EQ", mask, second=value, argument=1) for mask, value in differs],
        *[_rule("ioctl", "SCMP_CMP_MASKED_EQ", 0xFFFFFFFF, second=each, argument=1) for each in SHARED_COMMANDS],
    ]


def _rule(
    name: str, operator: str, value: int, *, second: int = 0, errno: int = 0, argument: int = 0
) -> dict[str, Any]:
    """A rule on one argument, the first unless told; allows, or fails with `errno`."""
    rule: dict[str, Any] = {
        "names": [name],
        "action": "SCMP_ACT_ERRNO" if errno else "SCMP_ACT_ALLOW",
        "args": [{"index": argument, "value": value, "valueTwo": second, "op": operator}],
    }
    return rule | {"errnoRet": errno} if errno else rule
