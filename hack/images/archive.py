#!/usr/bin/env python3
"""Writes the OCI image archive of hack/images.sh from a folder of programs that images.sh has laid out.

usage: archive.py PROGRAMS OUT.tar

It must never read from or write to a registry, nor put anything of this machine but the given programs into an image.
Every timestamp is 0, so that equal input gives equal digests.
"""
import copy
import gzip
import hashlib
import io
import json
import os
import platform
import sys
import tarfile

ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
E2E = "registry.k8s.io/e2e-test-images/"
CRITEST = "gcr.io/k8s-staging-cri-tools/"
CONTAINERD = "ghcr.io/containerd/"
HTML = b"<html><title>Welcome to nginx!</title><body>It works!</body></html>\n"
PASSWD = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
GROUP = "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nusers:x:100:\nwww-data:x:33:\nnogroup:x:65534:\n"
NGINX = """daemon off;
user www-data;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events {{ }}
http {{ access_log off; server {{ listen {port}; location / {{ root /www; }} }} }}
"""


class Layer:
    """One layer: a tar in memory, its directories made as they are needed."""

    def __init__(self):
        self.raw = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.raw, mode="w", format=tarfile.PAX_FORMAT)
        self.names = set()

    def add(self, path, kind, mode, data=b"", link="", owner=(0, 0)):
        path = path.strip("/")
        parent = os.path.dirname(path)
        if parent and parent not in self.names:
            self.dir(parent)
        if path in self.names:
            return
        self.names.add(path)
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
        info.uid, info.gid = owner
        self.tar.addfile(info, io.BytesIO(data))

    def dir(self, path, mode=0o755, owner=(0, 0)):
        self.add(path, tarfile.DIRTYPE, mode, owner=owner)

    def file(self, path, data, mode=0o644):
        self.add(path, tarfile.REGTYPE, mode, data if isinstance(data, bytes) else data.encode())

    def hardlink(self, path, to):
        # A hard link's own mode counts when the archive is unpacked.
        self.add(path, tarfile.LNKTYPE, 0o755, link=to)

    def copy(self, folder):
        """Everything beneath a folder, at the same place."""
        for base, _, files in sorted(os.walk(folder)):
            for name in sorted(files):
                source = os.path.join(base, name)
                with open(source, "rb") as f:
                    self.file(os.path.relpath(source, folder), f.read(), os.stat(source).st_mode & 0o7777)

    def done(self):
        self.tar.close()
        return self.raw.getvalue()


def base(programs, applets):
    """busybox, its applets as hard links (a mask over /bin/ls must not mask busybox), and what a root needs."""
    layer = Layer()
    for path in ("root", "home", "var/www", "var/run", "var/log", "var/lib", "etc", "proc", "sys", "dev", "run"):
        layer.dir(path, 0o700 if path == "root" else 0o755)
    for path in ("tmp", "var/tmp"):
        layer.dir(path, 0o1777)
    with open(os.path.join(programs, "busybox"), "rb") as f:
        layer.file("bin/busybox", f.read(), 0o755)
    layer.copy(os.path.join(programs, "shell"))
    layer.hardlink("bin/sh", "usr/bin/shell")
    for path in applets:
        name = os.path.basename(path)
        for place in {"bin/" + name, path}:
            layer.hardlink(place, "bin/busybox")
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    layer.file("www/index.html", HTML)
    return layer.done()


def layer(fill):
    made = Layer()
    fill(made)
    return made.done()


class Archive:
    def __init__(self, path):
        self.path, self.blobs, self.manifests = path, {}, []

    def blob(self, data):
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"digest": "sha256:" + digest, "size": len(data)}

    def image(self, names, layers, **config):
        """One image under each of some names; what differs between images with equal layers goes to `config`."""
        config.setdefault("Env", ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
        packed = [self.blob(gzip.compress(raw, 6, mtime=0)) for raw in layers]
        for one in packed:
            one["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
        root = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest() for raw in layers]}
        of = self.blob(json.dumps({"architecture": ARCH, "os": "linux", "config": config, "rootfs": root}, sort_keys=True).encode())
        of["mediaType"] = "application/vnd.oci.image.config.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": of, "layers": packed}
        entry = self.blob(json.dumps(manifest, sort_keys=True).encode())
        entry["mediaType"] = manifest["mediaType"]
        entry["platform"] = {"architecture": ARCH, "os": "linux"}
        for name in names:
            named = copy.deepcopy(entry)
            named["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
            self.manifests.append(named)

    def write(self):
        out = Layer()
        out.tar = tarfile.open(self.path, mode="w", format=tarfile.PAX_FORMAT)
        out.file("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}))
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": self.manifests}
        out.file("index.json", json.dumps(index))
        for digest, data in sorted(self.blobs.items()):
            out.file("blobs/sha256/" + digest, data)
        out.tar.close()


def main(programs, path):
    archive = Archive(path)
    with open(os.path.join(programs, "applets")) as f:
        busybox = base(programs, f.read().split())

    def program(name, mode=0o755):
        with open(os.path.join(programs, name), "rb") as f:
            data = f.read()
        return layer(lambda l: l.file(name, data, mode))

    utilities = layer(lambda l: l.copy(os.path.join(programs, "utilities")))
    nginx = layer(lambda l: l.copy(os.path.join(programs, "nginx")))

    def nginx_conf(port):
        def fill(l):
            l.file("etc/nginx/nginx.conf", NGINX.format(port=port))
            for sub in ("body", "fastcgi", "proxy", "scgi", "uwsgi"):
                l.dir("var/lib/nginx/" + sub, 0o700, (33, 33))
            l.dir("var/log/nginx")
        return layer(fill)

    def copied_up(l):
        for place, name in (("test_dir", "test_file"), ("C:/weird_test_dir", "weird_test_file"), (":colon_prefixed", "colon_prefixed_file")):
            l.file(place + "/" + name, "test_content\n")

    def predefined_group(l):
        l.file("etc/passwd", PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")
        l.file("etc/group", GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")

    shell, serve = ["sh"], ["nginx"]
    pause = program("pause")
    archive.image(["registry.k8s.io/pause:3.10.2", "localhost/pause:local"], [pause], Entrypoint=["/pause"])
    # What the specs about images pull and remove. An image's id is that of its configuration, and removing one name removes the
    # id with all its names: so each of these has an id of its own, and none is that of an image which others use.
    for names in (["registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"], [CRITEST + "test-image-tags:" + tag for tag in "123"],
                  *([CRITEST + "test-image-" + one] for one in ("latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"))):
        archive.image(names, [pause], Entrypoint=["/pause"], Labels={"name": names[0]})
    # The utilities are what Debian's static busybox lacks (ipcs, pgrep) and what a test of namespaces wants.
    archive.image(
        ["docker.io/library/busybox:latest", "localhost/busybox:latest", E2E + "busybox:1.29-2", CONTAINERD + "busybox:1.36",
         CONTAINERD + "alpine:3.14.0", E2E + "resource-consumer:1.10"],
        [busybox, utilities], Cmd=shell)
    archive.image(
        ["docker.io/library/nginx:latest", "localhost/nginx:latest", E2E + "nginx:1.14-2", CONTAINERD + "nginx:1.27.0"],
        [busybox, utilities, nginx, nginx_conf(80)], Cmd=serve, ExposedPorts={"80/tcp": {}}, StopSignal="SIGQUIT")
    archive.image([CRITEST + "hostnet-nginx-" + ARCH + ":latest"], [busybox, nginx, nginx_conf(12003)], Cmd=serve)
    # The server that it stands for says its name in its log, which a test of critest looks for.
    archive.image([E2E + "httpd:2.4.39-4"], [busybox], Cmd=["sh", "-c", "echo httpd: ready; exec httpd -f -p 80 -h /www"])
    archive.image([E2E + "nonewprivs:1.3"], [busybox, program("nnp", 0o4755)], Cmd=["/nnp"])
    archive.image([CONTAINERD + "volume-copy-up:2.2"], [busybox, layer(copied_up)], Cmd=shell,
                  Volumes={"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}})
    archive.image([CONTAINERD + "volume-ownership:2.1"], [busybox, layer(lambda l: l.dir("test_dir", owner=(65534, 65534)))], Cmd=shell,
                  Volumes={"/test_dir": {}})
    for name, user in (("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:users"), ("username-group", "www-data:100")):
        archive.image([CRITEST + "test-image-user-" + name + ":latest"], [busybox], Cmd=shell, User=user)
    archive.image([CRITEST + "test-image-predefined-group:latest"], [busybox, layer(predefined_group)], Cmd=shell, User="1000")
    archive.write()
    print(f"images: {len(archive.manifests)} names, {os.path.getsize(path) >> 20} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
