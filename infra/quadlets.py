"""A linter for rendered quadlets and systemd units. Pure; `python -m infra.quadlets FILE…` checks files.

podman's generator drops a unit for one unknown key, and all units of the host for one line that it cannot read, and says so only in
the host's journal. Worse, it takes units that lose data: a mongod that is killed after ten seconds, "started" before anything listens.
So each text is checked before it leaves:

- syntax and keys: `KEYS` has the podman version that first knew a key, read from `pkg/systemd/quadlet/quadlet.go` at the tags v4.4.0 to v5.8.2 and main;
  tests hold it against the real generator;
- our rules for `.container`: what a container of a region must say, each with its reason in the finding.

A finding is one sentence: file, line, what is wrong, how to mend it. Units of systemd's own (`.service` …) are checked for sections and `Key=value` only.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.config import ConfigError

__all__ = ["KEYS", "SYSTEMD_KEYS", "lint", "main", "require_clean"]

QUADLETS = PurePosixPath("/etc/containers/systemd")
UNITS = PurePosixPath("/etc/systemd/system")


_QUADLET_KEYS = """
Container 4.4 AddCapability AddDevice Annotation ContainerName DropCapability Environment EnvironmentFile EnvironmentHost Exec
Container 4.4 ExposeHostPort Group Image Label Network NoNewPrivileges Notify PodmanArgs PublishPort ReadOnly RemapGid RemapUid
Container 4.4 RemapUidSize RemapUsers RunInit SeccompProfile Timezone User VolatileTmp Volume
Container 4.5 HealthCmd HealthInterval HealthOnFailure HealthRetries HealthStartPeriod HealthStartupCmd HealthStartupInterval
Container 4.5 HealthStartupRetries HealthStartupSuccess HealthStartupTimeout HealthTimeout IP IP6 LogDriver Mount Rootfs Secret
Container 4.5 SecurityLabelDisable SecurityLabelFileType SecurityLabelLevel SecurityLabelType Tmpfs UserNS
Container 4.6 AutoUpdate HostName Mask Pull SecurityLabelNested Sysctl Unmask WorkingDir
Container 4.7 DNS DNSOption DNSSearch PidsLimit ShmSize Ulimit
Container 4.8 ContainersConfModule GIDMap GlobalArgs ReadOnlyTmpfs SubGIDMap SubUIDMap UIDMap
Container 5.0 Entrypoint Pod StopTimeout
Container 5.1 GroupAdd
Container 5.2 LogOpt NetworkAlias StopSignal
Container 5.3 AddHost CgroupsMode HealthLogDestination HealthMaxLogCount HealthMaxLogSize ServiceName StartWithPod
Container 5.5 Memory ReloadCmd ReloadSignal Retry RetryDelay
Container 5.7 HttpProxy
Container 5.8 AppArmor
Volume 4.4 Copy Device Group Label Options Type User
Volume 4.6 PodmanArgs
Volume 4.7 VolumeName
Volume 4.8 ContainersConfModule Driver GlobalArgs Image
Volume 5.3 ServiceName
Volume 6.0 GID UID
Network 4.4 DisableDNS Driver Gateway IPAMDriver IPRange IPv6 Internal Label Options Subnet
Network 4.6 PodmanArgs
Network 4.7 DNS NetworkName
Network 4.8 ContainersConfModule GlobalArgs
Network 5.3 ServiceName
Network 5.5 NetworkDeleteOnStop
Network 5.6 InterfaceName
Image 4.8 AllTags Arch AuthFile CertDir ContainersConfModule Creds DecryptionKey GlobalArgs Image ImageTag OS PodmanArgs TLSVerify
Image 4.8 Variant
Image 5.3 ServiceName
Image 5.5 Retry RetryDelay
Image 5.6 Policy
Pod 5.0 ContainersConfModule GlobalArgs Network PodName PodmanArgs PublishPort Volume
Pod 5.2 NetworkAlias
Pod 5.3 AddHost DNS DNSOption DNSSearch GIDMap IP IP6 RemapGid RemapUid RemapUidSize RemapUsers ServiceName SubGIDMap SubUIDMap
Pod 5.3 UIDMap UserNS
Pod 5.4 ShmSize
Pod 5.5 HostName
Pod 5.6 ExitPolicy Label
Pod 5.7 StopTimeout
Quadlet 5.3 DefaultDependencies
"""


def _table(text: str) -> dict[str, dict[str, tuple[int, int]]]:
    table: dict[str, dict[str, tuple[int, int]]] = {}
    for section, version, *keys in map(str.split, text.strip().splitlines()):
        major, minor = map(int, version.split("."))
        table.setdefault(section, {}).update(dict.fromkeys(keys, (major, minor)))
    return table


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEYS = _table(_QUADLET_KEYS)
"""Section → key → the podman that first knew it."""
SYSTEMD_KEYS = {
    "Unit": _names("""
        After AssertPathExists Before BindsTo ConditionPathExists ConditionPathIsDirectory ConditionPathIsMountPoint Conflicts
        DefaultDependencies Description Documentation OnFailure OnSuccess PartOf PropagatesReloadTo Requires RequiresMountsFor
        Requisite StartLimitAction StartLimitBurst StartLimitIntervalSec StopWhenUnneeded Upholds Wants"""),
    "Service": _names("""
        AllowedCPUs CPUQuota CPUSchedulingPolicy CPUWeight Delegate DynamicUser Environment EnvironmentFile ExecCondition ExecReload
        ExecStart ExecStartPost ExecStartPre ExecStop ExecStopPost Group IOSchedulingClass IOSchedulingPriority IOWeight KillMode
        KillSignal LimitCORE LimitMEMLOCK LimitNOFILE LimitNPROC LogRateLimitBurst LogRateLimitIntervalSec MemoryHigh MemoryLow
        MemoryMax MemoryMin MemorySwapMax Nice NotifyAccess OOMPolicy OOMScoreAdjust PIDFile RemainAfterExit Restart
        RestartForceExitStatus RestartMaxDelaySec RestartPreventExitStatus RestartSec RestartSteps RuntimeDirectory SendSIGKILL Slice
        StandardError StandardOutput SuccessExitStatus SyslogIdentifier TasksMax TimeoutAbortSec TimeoutStartSec TimeoutStopSec Type
        UMask User WatchdogSec WorkingDirectory"""),
    "Install": _names("Alias Also DefaultInstance RequiredBy UpheldBy WantedBy"),
}
"""What our quadlets may say to systemd, which passes over a misspelt key with no more than a line in the journal."""

_KINDS = {".container": "Container", ".volume": "Volume", ".network": "Network", ".image": "Image", ".pod": "Pod"}
_LIGHT = _names(".service .timer .socket .mount .path .target .slice")
_REPEATED = _names("""
    AddCapability AddDevice AddHost Annotation ContainersConfModule DNS DNSOption DNSSearch DropCapability Environment EnvironmentFile
    ExposeHostPort GIDMap Gateway GlobalArgs GroupAdd IPRange Label LogOpt Mask Mount Network NetworkAlias Options PodmanArgs
    PublishPort RemapGid RemapUid Secret Subnet Sysctl Tmpfs UIDMap Ulimit Unmask Volume""")
"""podman takes each of them, and of every other the last."""
_ONCE = _names("""
    DefaultDependencies Delegate Description Group KillMode LimitNOFILE MemoryHigh MemoryMax Nice OOMScoreAdjust RemainAfterExit
    Restart RestartSec Slice StartLimitBurst StartLimitIntervalSec TasksMax TimeoutStartSec TimeoutStopSec Type User""")
"""systemd takes the last of them."""
_SPLIT = _names("""
    AddCapability AddDevice Annotation DropCapability Environment EnvironmentFile Exec GlobalArgs Label LogOpt Mask Mount Options
    PodmanArgs ReloadCmd Secret Sysctl Unmask""")
"""The generator splits them into words and takes quotes off. Elsewhere it keeps a quote as it stands, or cuts one off at the end."""
_CHECKS = _names("HealthCmd HealthStartupCmd")
_AROUND = _names("--privileged --cap-add --user -u --publish -p --network --net --env -e --volume -v")
_TRAPS = (
    (r"\\", "a backslash, which podman and then systemd read as the start of an escape; do without it"),
    (r"(?<!%)(%%)*%(?![%aAbBCdDEfgGhHiIjJlLmMnNopPqsStTuUvVwW])", "a % that starts no specifier of systemd; write %%"),
    (r"(?<!\$)\$(\$\$)*(?!\$)", "a $, which systemd replaces from its own environment before podman sees it; write $$"),
)
_NEEDED = """
Container Image: there is nothing to run; name one
Container Pull=never: a start must wait for no registry; hosts get their images before
Container Network=host: a member is reached under one address from everywhere
Container ReadOnly=true: only volumes may be written
Container NoNewPrivileges=true: no setuid program may gain rights
Container User: root is the default; give a numeric uid:gid
Container StopTimeout: podman kills after 10 s; give the seconds that a clean stop takes
Container PidsLimit: podman's default is 2048 threads; give a number, or -1 with TasksMax= in [Service]
Container LogDriver=journald: logs have one place and one limit
Service TimeoutStopSec: systemd kills after 90 s; give more than StopTimeout
Service TasksMax: the host's default holds; give the threads that it may have
Service MemoryMax: it may take all memory of the host; give a limit
Service Restart: what crashed stays down; write always or on-failure
Install WantedBy: nothing starts it after a reboot; write multi-user.target
"""
_TELLING = re.compile(
    r"(?i)(pass(word|wd|phrase)|secret|token|credential|(^|[_.-])(api|auth|private|admin|access)?_?key$)"
)
_URI_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|seconds?|sec|s|minutes?|min|m|hours?|hr|h|days?|d)?")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class _Entry:
    line: int
    section: str
    key: str
    value: str


class _Unit:
    """A parsed unit, and what was found in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: list[_Entry] = []
        self.sections: dict[str, int] = {}
        self.findings: list[tuple[int, str]] = []
        self.price = "podman drops all units" if PurePosixPath(name).suffix in _KINDS else "systemd drops the line"

    def found(self, where: _Entry | str | int, what: str) -> None:
        """`where`: an entry, a section (which lacks something) or a line."""
        if isinstance(where, str):
            where = self.sections.get(where, 1)
        self.findings.append((where if isinstance(where, int) else where.line, what))

    def all(self, section: str, key: str) -> list[_Entry]:
        """An empty value takes back what stood before it, as it does in systemd."""
        given: list[_Entry] = []
        for entry in self.entries:
            if (entry.section, entry.key) == (section, key):
                given = [*given, entry] if entry.value else []
        return given

    def last(self, section: str, key: str) -> _Entry | None:
        given = self.all(section, key)
        return given[-1] if given else None

    def need(self, section: str, key: str, why: str) -> None:
        """Finds fault when `Key` is absent, or not as `Key=value` wants it."""
        key, _, value = key.partition("=")
        entry = self.last(section, key)
        if entry is None:
            self.found(section, f"[{section}] has no {key}={value}: {why.strip()}")
        elif value and entry.value.lower() != value and not (value == "true" and _is_true(entry.value)):
            self.found(entry, f"{key}={entry.value} must be {key}={value}: {why.strip()}")


def _is_true(value: str) -> bool:
    return value.lower() in {"true", "yes", "on", "1", "y", "t"}


def _parse(name: str, text: str) -> _Unit:
    """As `pkg/systemd/parser/unitfile.go` reads it: a backslash at the end joins lines; comments between them are skipped."""
    unit = _Unit(name)
    section, joined, begun = "", "", 0
    for number, raw in enumerate(text.removesuffix("\n").split("\n"), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        joined, begun = joined + line.removesuffix("\\"), begun or number
        if not line.endswith("\\"):
            section = _parse_line(unit, joined, begun, section)
            joined, begun = "", 0
    if begun:
        unit.found(begun, "the backslash at the end of the line joins it with nothing; take it away")
        _parse_line(unit, joined, begun, section)
    return unit


def _parse_line(unit: _Unit, line: str, number: int, section: str) -> str:
    """The section that the next line stands in."""
    if heading := re.fullmatch(r"\[([^\[\]]+)\][ \t]*", line):
        unit.sections.setdefault(heading[1], number)
        return heading[1]
    key, equals, value = line.partition("=")
    key = key.rstrip()
    if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key):
        unit.found(number, f"{line!r} is no section and no Key=value, and {unit.price} for it; mend or delete it")
    elif not section:
        unit.found(number, f"{key}= stands before the first section, and {unit.price} for it; move it")
    else:
        unit.entries.append(_Entry(number, section, key, value.strip()))
    return section


# -- syntax and keys -----------------------------------------------------------------------------------------------------


def _check_keys(unit: _Unit, kind: str, podman: tuple[int, int]) -> None:
    known = {kind, "Quadlet", *SYSTEMD_KEYS}
    for section, line in unit.sections.items():
        if section not in known and not section.startswith("X-"):
            unit.found(
                line, f"[{section}] is no section of a .{kind.lower()} file; use one of {', '.join(sorted(known))}"
            )
    if kind not in unit.sections:
        unit.found(1, f"there is no [{kind}] section and the generator makes nothing of the file; add it")
    seen: dict[tuple[str, str], _Entry] = {}
    for entry in unit.entries:
        if entry.section in known:
            _check_key(unit, entry, kind, podman)
        single = entry.key not in _REPEATED if entry.section in KEYS else entry.key in _ONCE
        if single and (first := seen.setdefault((entry.section, entry.key), entry)) is not entry:
            unit.found(entry, f"{entry.key}= stands in line {first.line} already and only the last counts; keep one")


def _check_key(unit: _Unit, entry: _Entry, kind: str, podman: tuple[int, int]) -> None:
    key, section = entry.key, entry.section
    every = {**KEYS, **SYSTEMD_KEYS}
    if key in every[section]:
        since = KEYS.get(section, {}).get(key, podman)
        if since > podman:
            new, old = (".".join(map(str, version)) for version in (since, podman))
            unit.found(entry, f"{key}= came with podman {new} and {old} drops the unit for it; say it in another way")
    elif places := [f"[{name}]" for name in (kind, *SYSTEMD_KEYS, "Quadlet") if key in every[name]]:
        unit.found(entry, f"{key}= does not belong into [{section}]; move it to {' or '.join(places)}")
    elif section in KEYS:
        unit.found(entry, f"no podman knows {key}= in [{section}] and the unit is dropped for it; check the spelling")
    else:
        unit.found(entry, f"{key}= in [{section}] is none of SYSTEMD_KEYS in infra/quadlets.py; check the spelling")


def _check_values(unit: _Unit, kind: str, podman: tuple[int, int]) -> None:
    """Quotes, backslashes, `%`, `$` and `#`, which do not mean what they look like."""
    for entry in unit.entries:
        key, value = entry.key, entry.value
        if re.search(r"\s#", value):
            unit.found(entry, f"{key}= has a # in its value, which begins no comment there; give it a line of its own")
        if entry.section != kind:
            continue
        for pattern, trap in _TRAPS:
            if re.search(pattern, value):
                unit.found(entry, f"{key}= has {trap}")
        if '"' not in value and "'" not in value:
            continue
        if key in _CHECKS:
            if podman < (5, 9):
                unit.found(entry, f"{key}= has quotes, and podman before 5.8.2 cuts them off its ends; call a script")
        elif key not in _SPLIT:
            unit.found(entry, f"{key}= has quotes, which become part of the value or are cut off; leave them out")
        elif not _words(value):
            unit.found(entry, f"{key}= opens a quote that nothing closes; close it")


def _words(value: str) -> list[str]:
    """Empty when a quote is not closed."""
    try:
        return shlex.split(value)
    except ValueError:
        return []


# -- our rules for .container --------------------------------------------------------------------------------------------


def _is_mongod(unit: _Unit) -> bool:
    program = unit.last("Container", "Entrypoint") or unit.last("Container", "Exec")
    first = (program.value.split() or [""])[0] if program else ""
    return "mongod" in PurePosixPath(unit.name).name or PurePosixPath(first).name == "mongod"


def _seconds(value: str) -> float:
    """A time span of systemd.time(7), in seconds; NaN when it is none."""
    if value in {"infinity", "0"}:
        return math.inf
    parts = list(_SPAN.finditer(value))
    if not parts or _SPAN.sub("", value).strip():
        return math.nan
    return sum(float(p[1]) * _SECONDS[p[2] if p[2] in {"us", "ms"} else (p[2] or "s")[0]] for p in parts)


def _image(unit: _Unit) -> None:
    image = unit.last("Container", "Image")
    if image and not _DIGEST.fullmatch(image.value):
        unit.found(image, f"Image={image.value} has no digest and may be another program tomorrow; write name@sha256:…")
    domain, slash, _ = image.value.partition("/") if image else ("", "", "")
    if image and not (slash and ("." in domain or ":" in domain or domain == "localhost")):
        unit.found(
            image, f"Image={image.value} names no registry and podman guesses one; put it (or localhost/) before"
        )
    if update := unit.last("Container", "AutoUpdate"):
        unit.found(update, "AutoUpdate= restarts the container by a timer, majority or not; delete it")


def _network(unit: _Unit) -> None:
    for entry in unit.all("Container", "PublishPort"):
        unit.found(entry, "PublishPort= means nothing with Network=host; delete it and bind the program to an address")


def _confined(unit: _Unit) -> None:
    dropped = unit.all("Container", "DropCapability")
    if not any("all" in entry.value.lower().split() for entry in dropped):
        where = dropped[0] if dropped else "Container"
        unit.found(where, "[Container] has no DropCapability=all: podman leaves eleven capabilities; add it")
    for entry in unit.all("Container", "PodmanArgs"):
        for word in _words(entry.value):
            if (option := word.partition("=")[0]) in _AROUND:
                unit.found(entry, f"PodmanArgs= with {option} gets around these rules; use the key for it, or none")


def _user(unit: _Unit) -> None:
    for key in ("User", "Group", "DynamicUser"):
        if entry := unit.last("Service", key):
            unit.found(entry, f"[Service] {key}= changes the user of podman itself; put User= into [Container]")
    if user := unit.last("Container", "User"):
        ids = user.value.split(":")
        if not all(part.isdecimal() for part in ids):
            unit.found(user, f"User={user.value} is looked up in the image's own files; give it in numbers, uid:gid")
        elif not all(int(part) for part in ids):
            unit.found(user, f"User={user.value} is root; give a user of its own")


def _stop(unit: _Unit) -> None:
    stop, limit = unit.last("Container", "StopTimeout"), unit.last("Service", "TimeoutStopSec")
    inner = int(stop.value) if stop and stop.value.isdecimal() else math.nan
    outer = _seconds(limit.value) if limit else math.nan
    if stop and math.isnan(inner):
        unit.found(stop, f"StopTimeout={stop.value} is no number of seconds; write it without a unit")
    if limit and math.isnan(outer):
        unit.found(limit, f"TimeoutStopSec={limit.value} is no time span; write seconds, such as 150")
    if limit and inner >= outer:
        unit.found(limit, f"TimeoutStopSec={limit.value} ends before podman's StopTimeout={inner}; make it longer")
    if stop and inner < 60 and _is_mongod(unit):
        unit.found(
            stop, f"StopTimeout={inner} may kill a mongod that steps down and writes its checkpoint; give 60 or more"
        )


def _health(unit: _Unit) -> None:
    notify, kill = unit.last("Container", "Notify"), unit.last("Container", "HealthOnFailure")
    if notify and notify.value.lower() == "healthy":
        unit.need("Container", "HealthCmd", "without it Notify=healthy says started at once; give a check")
        unit.need(
            "Container", "HealthStartupCmd", "without it a start waits for HealthInterval=; give the check of the start"
        )
    if notify:
        unit.need("Service", "TimeoutStartSec", "systemd gives up after 90 s; say how long a start may take")
    if kill and kill.value.lower() != "none" and _is_mongod(unit):
        unit.found(kill, f"HealthOnFailure={kill.value} makes a crash recovery of a mongod's overload; delete it")


def _limits(unit: _Unit) -> None:
    if not any(entry.value.startswith("nofile=") for entry in unit.all("Container", "Ulimit")):
        unit.found("Container", "[Container] has no Ulimit=nofile=…: the host's default limits connections; add it")


def _volumes(unit: _Unit) -> None:
    for entry in unit.all("Container", "Volume"):
        source, _, target = entry.value.partition(":")
        if not source or not target.startswith("/"):
            unit.found(
                entry, f"Volume={entry.value} is anonymous, and a stop deletes it; write /path:/path or name:/path"
            )


def _secrets(unit: _Unit) -> None:
    for entry in unit.entries:
        if entry.key == "Secret" and "type=env" in entry.value.split(","):
            unit.found(entry, "Secret=…,type=env stands in the environment of all its children; use type=mount")
        if entry.key in _CHECKS | {"Environment", "Exec", "Label", "Annotation", "PodmanArgs"}:
            for name in _told(_words(entry.value)):
                unit.found(
                    entry, f"{entry.key}= shows {name} to all who list processes; give the path of a file instead"
                )


def _told(words: Sequence[str]) -> Iterator[str]:
    """The names under which a secret stands in clear text; never the secret."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not equals and word.startswith("-"):
            value = "".join(words[index + 1 : index + 2])
        if value and not value.startswith(("/", "-")) and _TELLING.search(name):
            yield name
        elif _URI_PASSWORD.search(word):
            yield "the password in a URI"


_RULES = (_image, _network, _confined, _user, _stop, _health, _limits, _volumes, _secrets)


def lint(name: str, text: str, podman: tuple[int, int] = (5, 4)) -> list[str]:
    """One sentence for each thing that is wrong, in the order of lines. `name` decides by its suffix what the text is."""
    suffix = PurePosixPath(name).suffix
    unit = _parse(name, text)
    if kind := _KINDS.get(suffix):
        _check_keys(unit, kind, podman)
        _check_values(unit, kind, podman)
        if kind == "Container":
            for section, key, why in (re.split("[ :]", line, maxsplit=2) for line in _NEEDED.strip().splitlines()):
                unit.need(section, key, why)
            for rule in _RULES:
                rule(unit)
    elif suffix not in _LIGHT:
        kinds = ", ".join([*_KINDS, *sorted(_LIGHT)])
        unit.found(1, f"the linter does not know {suffix or 'files without a suffix'}; it knows {kinds}")
    elif not unit.sections:
        unit.found(1, "there is no section; begin with [Unit]")
    return [f"{name}:{line}: {what}" for line, what in sorted(unit.findings, key=lambda found: found[0])]


def require_clean(files: Mapping[str, str]) -> None:
    """Of these files (path → content) those that are quadlets or systemd units have no findings. Raises ConfigError with all of them."""
    findings: list[str] = []
    for path, content in files.items():
        parent = PurePosixPath(path).parent
        if parent == QUADLETS or (parent == UNITS and PurePosixPath(path).suffix in _LIGHT):
            findings += lint(path, content)
    if findings:
        raise ConfigError("\n".join(findings))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. 1 = something was found."""
    parser = argparse.ArgumentParser(prog="python -m infra.quadlets", description="Check quadlets and systemd units.")
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path)
    parser.add_argument("--podman", default="5.4", help="the version that must understand them (default: 5.4)")
    given = parser.parse_args(argv)
    if not (version := re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", given.podman)):
        parser.error(f"--podman {given.podman}: write it as 5.4")
    findings = [
        found
        for path in given.files
        for found in lint(str(path), path.read_text("utf-8"), (int(version[1]), int(version[2])))
    ]
    sys.stdout.writelines(f"{found}\n" for found in findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
