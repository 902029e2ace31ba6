"""Checks an RPM beside the Debian package of the same files: rpm.py RPM DEB."""

import re
import subprocess
import sys

# The RPM has it in the folder of the distributions with RPM.
ZSH = ("/usr/share/zsh/vendor-completions/", "/usr/share/zsh/site-functions/")

# What only one of the two has: the Debian package a copyright file, and compressed manual pages and changelog.
DEBIAN_ONLY = {"/usr/share/doc/runwatch/copyright"}


def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def files_of_deb(deb):
    """The paths of the files with their modes, such as `rwxr-xr-x`."""
    found = {}
    for line in run("dpkg-deb", "--contents", deb).splitlines():
        mode, _, _, _, _, path = line.split(maxsplit=5)
        if mode.startswith("-"):
            found[path.removeprefix(".").removesuffix(".gz").replace(*ZSH)] = mode[1:]
    return {path: mode for path, mode in found.items() if path not in DEBIAN_ONLY}


def files_of_rpm(rpm):
    lines = run("rpm", "-qp", "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]", rpm)
    found = {}
    for line in lines.splitlines():
        mode, user, group, path = line.split(maxsplit=3)
        assert (user, group) == ("root", "root"), line
        if mode.startswith("-"):
            found[path] = mode[1:]
    return found


def main(rpm, deb):
    of_deb, of_rpm = files_of_deb(deb), files_of_rpm(rpm)
    assert len(of_rpm) >= 60 and of_rpm["/usr/bin/runwatch"] == "rwxr-xr-x", of_rpm
    assert "/usr/lib/systemd/system/runwatch.service" in of_rpm, of_rpm
    # Debian 12 still has units in /lib.
    of_deb = {re.sub("^/lib/", "/usr/lib/", path): mode for path, mode in of_deb.items()}
    assert of_rpm == of_deb, sorted(set(of_rpm.items()) ^ set(of_deb.items()))
    assert run("rpm", "-qp", "--configfiles", rpm).split() == ["/etc/runwatch/config.toml"]
    assert "/usr/share/doc/runwatch/README.md" in run("rpm", "-qp", "--docfiles", rpm).split()
    name, license_, requires = run(
        "rpm", "-qp", "--queryformat", "%{NAME}\n%{LICENSE}\n[%{REQUIRES} ]", rpm).splitlines()
    assert (name, license_) == ("runwatch", "MIT OR Apache-2.0"), (name, license_)
    for needed in ("/bin/sh", "ca-certificates", "systemd", "util-linux", "libc.so.6(GLIBC_2.34)(64bit)"):
        assert needed in requires.split(), (needed, requires)
    scripts = run("rpm", "-qp", "--scripts", rpm)
    kinds = re.findall(r"^(\w+) scriptlet \(using /bin/sh\):$", scripts, re.MULTILINE)
    assert sorted(kinds) == ["postinstall", "postuninstall", "preuninstall"], scripts
    digests = run("rpm", "--checksig", "--nosignature", rpm)
    assert "digests OK" in digests, digests
    print(f"the RPM has the {len(of_rpm)} files of the Debian package, and {len(kinds)} scripts")


main(*sys.argv[1:])
