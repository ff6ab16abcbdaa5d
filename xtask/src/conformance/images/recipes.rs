//! Which images the specs use, and what is in them.

use super::layer::Part::{self, Busybox, Debian, Directory, Link, Program, Text, Upstream};

/// How to make an image.
pub struct Recipe {
    /// Its names.
    pub names: &'static [&'static str],
    /// Its layers, the lowest first.
    pub layers: &'static [&'static [Part]],
    /// What runs when a container names no command.
    pub entrypoint: &'static [&'static str],
    /// The arguments when a container names none.
    pub command: &'static [&'static str],
    /// As whom.
    pub user: &'static str,
}

/// Tools that specs call by `kubectl exec` or in scripts.
const TOOLS: &[Part] = &[Debian(&[
    "base-files",
    "bash",
    "bind9-dnsutils",
    "coreutils",
    "curl",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iperf",
    "iproute2",
    "iputils-ping",
    "libc-bin",
    "mount",
    "netcat-openbsd",
    "procps",
    "sed",
    "tar",
    "util-linux",
])];

const AGNHOST: &[Part] = &[
    Program { name: "agnhost", path: "agnhost", mode: 0o755 },
    Link { path: "agnhost-2", target: "agnhost" },
    Directory { path: "uploads", mode: 0o755 },
    Directory { path: "tmp", mode: 0o1777 },
    Upstream { source: "test/images/agnhost/porter/localhost.crt", path: "localhost.crt" },
    Upstream { source: "test/images/agnhost/porter/localhost.key", path: "localhost.key" },
    Link { path: "usr/bin/sh", target: "bash" },
    Link { path: "usr/bin/nc", target: "nc.openbsd" },
    Link { path: "usr/bin/awk", target: "mawk" },
    Link { path: "usr/local/bin/iperf", target: "/usr/bin/iperf" },
    Text {
        path: "etc/passwd",
        text: "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n\
               nobody:x:65534:65534::/:/bin/sh\n",
    },
    Text {
        path: "etc/group",
        text: "root:x:0:\nuser-defined-in-image:x:1000:\n\
               group-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n",
    },
];

const NAUTILUS: &[Part] = &[
    Text { path: "data.json", text: "{\"image\":\"nautilus.jpg\"}\n" },
    Text { path: "nautilus.jpg", text: "a nautilus\n" },
];

const KITTEN: &[Part] = &[
    Text { path: "data.json", text: "{\"image\":\"kitten.jpg\"}\n" },
    Text { path: "kitten.jpg", text: "a kitten\n" },
    Text { path: "etc/os-release", text: "NAME=\"Alpine Linux\"\nID=alpine\nPRETTY_NAME=\"Alpine Linux\"\n" },
];

const NGINX: &[Part] = &[
    Text {
        path: "etc/nginx/nginx.conf",
        text: "user root;\nworker_processes 1;\nerror_log /dev/stderr;\npid /run/nginx.pid;\n\
               events { worker_connections 256; }\n\
               http { access_log /dev/stdout; default_type text/html;\n\
               server { listen 80; root /usr/share/nginx/html; } }\n",
    },
    Text {
        path: "usr/share/nginx/html/index.html",
        text: "<!DOCTYPE html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1>\n",
    },
    Directory { path: "var/log/nginx", mode: 0o755 },
    Directory { path: "var/lib/nginx", mode: 0o755 },
    Directory { path: "tmp", mode: 0o1777 },
    Link { path: "usr/bin/sh", target: "bash" },
    Text { path: "etc/passwd", text: "root:x:0:0:root:/root:/bin/sh\n" },
    Text { path: "etc/group", text: "root:x:0:\n" },
];

/// A program that is all of its image.
macro_rules! alone {
    ($name:literal, $path:literal) => {
        &[&[Program { name: $name, path: $path, mode: 0o755 }]]
    };
}

/// All images.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        names: &["registry.k8s.io/pause:3.10.2"],
        layers: alone!("pause", "pause"),
        entrypoint: &["/pause"],
        command: &[],
        user: "65535:65535",
    },
    Recipe {
        names: &[
            "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
            "registry.k8s.io/e2e-test-images/agnhost:2.55",
        ],
        layers: &[TOOLS, AGNHOST],
        entrypoint: &["/agnhost"],
        command: &["pause"],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/e2e-test-images/nautilus:1.8"],
        layers: &[TOOLS, AGNHOST, NAUTILUS],
        entrypoint: &["/agnhost"],
        command: &["test-webserver"],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/e2e-test-images/kitten:1.8"],
        layers: &[TOOLS, AGNHOST, KITTEN],
        entrypoint: &["/agnhost"],
        command: &["test-webserver"],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0"],
        layers: &[TOOLS, AGNHOST],
        entrypoint: &[],
        command: &["bash"],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/e2e-test-images/busybox:1.37.0-1"],
        layers: &[&[
            Busybox,
            Directory { path: "tmp", mode: 0o1777 },
            Directory { path: "root", mode: 0o700 },
            Directory { path: "home", mode: 0o755 },
            Directory { path: "var", mode: 0o755 },
            Text {
                path: "etc/passwd",
                text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/home:/bin/false\n",
            },
            Text { path: "etc/group", text: "root:x:0:\nnogroup:x:65534:\n" },
        ]],
        entrypoint: &[],
        command: &["sh"],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/e2e-test-images/nginx:1.15-4"],
        layers: &[&[Debian(&["base-files", "bash", "coreutils", "nginx"])], NGINX],
        entrypoint: &[],
        command: &["nginx", "-g", "daemon off;"],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/e2e-test-images/nonewprivs:1.4"],
        layers: &[&[Program { name: "nnp", path: "usr/local/bin/nnp", mode: 0o6755 }]],
        entrypoint: &[],
        command: &["nnp"],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/e2e-test-images/sample-apiserver:1.29.2"],
        layers: alone!("sample-apiserver", "sample-apiserver"),
        entrypoint: &["/sample-apiserver"],
        command: &[],
        user: "",
    },
    Recipe {
        names: &["registry.k8s.io/etcd:3.6.8-0"],
        layers: alone!("etcd", "usr/local/bin/etcd"),
        entrypoint: &[],
        command: &["/usr/local/bin/etcd"],
        user: "",
    },
];
