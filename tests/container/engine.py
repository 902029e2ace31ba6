"""What a container engine does, as far as an image depends on it: lays out the tree as the Dockerfile says, and
runs a program in it as the image's user, with the root read-only and PID, mount, IPC and host name
namespaces of its own. The network is that of the caller.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

from dockerfile_parse import DockerfileParser

from parts import Failed, equal, holds, run, within

# What engines put into every container.
DEVICES = {"null": "1 3", "zero": "1 5", "full": "1 7", "random": "1 8", "urandom": "1 9", "tty": "5 0"}


class Image:
    """The image that the Dockerfile makes of a tree that packaging/image has built."""

    def __init__(self, dockerfile, tree, root):
        lines = DockerfileParser(fileobj=open(dockerfile, "rb")).structure
        steps = [(line["instruction"], line["value"]) for line in lines if line["instruction"] != "COMMENT"]
        stages = [at for at, (name, _) in enumerate(steps) if name == "FROM"]
        equal("stages of the Dockerfile", len(stages), 2)
        build, final = steps[:stages[1]], steps[stages[1]:]
        equal("the first stage runs", [value for name, value in build if name == "RUN"], ["packaging/image /image"])
        # What `--version` shows: the sources in the image come without their repository.
        equal("the commit", [step for step in build if step[0] in ("ARG", "ENV")],
              [("ARG", "COMMIT="), ("ENV", "RUNWATCH_COMMIT=$COMMIT")])
        equal("the image begins with", final[0], ("FROM", "scratch"))
        self.base = build[0][1].removesuffix(" AS build")
        self.root = Path(root)
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.environment, self.arguments, self.labels, self.volumes = {}, {}, {}, []
        for name, value in final[1:]:
            if name == "COPY":
                self._copy(value, Path(tree))
            elif name == "ENV":
                self.environment |= dict(word.split("=", 1) for word in shlex.split(value))
            elif name == "USER":
                self.user, self.group = map(int, value.split(":"))
            elif name == "VOLUME":
                self.volumes.append(value)
            elif name == "ENTRYPOINT":
                self.entrypoint = json.loads(value)
            elif name == "CMD":
                self.command = json.loads(value)
            elif name == "STOPSIGNAL":
                self.stop_signal = getattr(signal, value)
            elif name == "EXPOSE":
                self.port = int(value)
            elif name == "HEALTHCHECK":
                self.healthcheck = json.loads(value[value.index("CMD ") + 4:])
            elif name == "ARG":
                self.arguments |= dict(word.split("=", 1) for word in shlex.split(value))
            elif name == "LABEL":
                self.labels |= dict(word.split("=", 1) for word in shlex.split(value))
            else:
                raise Failed(f"the Dockerfile has {name}, which this engine does not know")

    def _copy(self, value, tree):
        words = shlex.split(value)
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        source, target = (word for word in words if not word.startswith("--"))
        equal("copied from", (options["from"], source.split("/")[1]), ("build", "image"))
        source, target = tree / source[len("/image"):].strip("/"), self.root / target.strip("/")
        run("cp", "-R", "--preserve=mode", f"{source}/.", target)
        if "chown" in options:
            run("chown", "-R", options["chown"], target)
        if "chmod" in options:
            run("chmod", "-R", options["chmod"], target)


class Container:
    """A program in the image. `mounts` are pairs of a path outside and one inside; those of `writable` can be
    written to. `files` are what engines write into /etc: hosts, resolv.conf.
    """

    def __init__(self, image, folder, command=None, entrypoint=None, environment=(), mounts=(), writable=(),
                 files=(), user=None):
        self.image, self.folder = image, Path(folder)
        self.environment = image.environment | {"PATH": "/usr/bin:/bin", "HOSTNAME": "pod"} | dict(environment)
        self.user, self.group = user or (image.user, image.group)
        shutil.rmtree(self.folder, ignore_errors=True)
        root = self.folder / "root"
        root.mkdir(parents=True)
        # The upper layer of the container is thrown away with it.
        run("cp", "-a", f"{image.root}/.", root)
        script = ["set -e", "mount --make-rprivate /", f"mount --bind {root} {root}"]
        for path in ("proc", "dev", "sys"):
            (root / path).mkdir()
        script.append(f"mount -t tmpfs -o mode=755 dev {root}/dev")
        script += [f"mknod -m 666 {root}/dev/{name} c {numbers}" for name, numbers in DEVICES.items()]
        for name, text in dict(files).items():
            (root / "etc" / name).write_text(text)
        for outside, inside in [*mounts, *writable]:
            place = root / inside.strip("/")
            if Path(outside).is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            script.append(f"mount --bind {outside} {place}")
            if (outside, inside) not in writable:
                script.append(f"mount -o remount,ro,bind {place}")
        script += [f"mount -o remount,ro,bind {root}", f"mount -t proc proc {root}/proc", "ulimit -c 0"]
        argv = [*(entrypoint or image.entrypoint), *(image.command if command is None else command)]
        script.append(f"exec {self._enter()} {root} {shlex.join(argv)}")
        self.log = self.folder / "log"
        with open(self.log, "w") as log:
            self.engine = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c",
                 "\n".join(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        self.code = None

    def _enter(self):
        variables = " ".join(shlex.quote(f"{name}={value}") for name, value in self.environment.items())
        return f"env -i {variables} /usr/sbin/chroot --userspec={self.user}:{self.group} --groups={self.group}"

    def output(self):
        return self.log.read_text()

    def process(self):
        """The process ID, seen from outside, of the container's first process once it runs in the image."""
        def find():
            if self.engine.poll() is not None:
                raise Failed(f"the container ended with {self.engine.returncode}:\n{self.output()}")
            children = Path(f"/proc/{self.engine.pid}/task/{self.engine.pid}/children").read_text().split()
            # Until the program is there, it is the shell.
            if children and os.readlink(f"/proc/{children[0]}/root") != "/":
                return int(children[0])
            return None
        return within(20, "the container runs", find)

    def execute(self, *argv):
        """Runs a program in the container, as engines and kubelets do for probes. Returns exit code and output."""
        process = self.process()
        inside = ["nsenter", f"--target={process}", "--mount", "--pid", "--ipc", "--uts", "--root", "--wd",
                  f"--setgid={self.group}", f"--setuid={self.user}", "--", *argv]
        done = subprocess.run(inside, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def signal(self, number=None):
        os.kill(self.process(), number or self.image.stop_signal)

    def wait(self, seconds):
        """The exit code."""
        try:
            return self.engine.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"the container has not ended within {seconds} s") from None

    def stop(self, seconds=20):
        self.signal()
        return self.wait(seconds)

    def peak_memory(self):
        """Most memory that the first process has had at once, in KiB."""
        return self.figure("VmHWM")

    def memory(self):
        """Memory that the first process has, in KiB."""
        return self.figure("VmRSS")

    def figure(self, name):
        status = Path(f"/proc/{self.process()}/status").read_text()
        return int(status.split(f"{name}:")[1].split()[0])

    def processor_seconds(self):
        """What the first process has used of a processor."""
        fields = Path(f"/proc/{self.process()}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        if self.engine.poll() is None:
            # With --kill-child the process inside goes with it.
            self.engine.kill()
            self.engine.wait()


def expect_read_only(container, image):
    """No place but the volumes can be written to by this user, and there are no capabilities."""
    process = container.process()
    status = Path(f"/proc/{process}/status").read_text()
    for line, expected in (("Uid", [str(image.user)] * 4), ("Gid", [str(image.group)] * 4), ("CapEff", ["0" * 16])):
        equal(line, status.split(f"\n{line}:")[1].splitlines()[0].split(), expected)
    writable = []
    for line in Path(f"/proc/{process}/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind not in ("proc", "tmpfs") and "rw" in options.split(","):
            writable.append(place)
    equal("writable mounts", writable, image.volumes)
    holds("one process", Path(f"/proc/{process}/task/{process}/children").read_text() == "")
