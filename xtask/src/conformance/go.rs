//! The Go programs: the suite, its tools, and what the images hold. Built once for each state of the Go modules.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::digest::Digest;

/// What `--version` of the suite and of kubectl says.
pub const VERSION: &str = "v1.36.3";

/// The modules, as directories of the repository.
const MODULES: [&str; 2] = ["conformance", "conformance/sample-apiserver"];

/// Program, its module, its package.
const PROGRAMS: [(&str, &str, &str); 7] = [
    ("ginkgo", MODULES[0], "github.com/onsi/ginkgo/v2/ginkgo"),
    ("kubectl", MODULES[0], "k8s.io/kubernetes/cmd/kubectl"),
    ("agnhost", MODULES[0], "k8s.io/kubernetes/test/images/agnhost"),
    ("etcd", MODULES[0], "go.etcd.io/etcd/server/v3"),
    ("pause", MODULES[0], "./programs/pause"),
    ("nnp", MODULES[0], "./programs/nnp"),
    ("sample-apiserver", MODULES[1], "k8s.io/sample-apiserver"),
];
const SUITE: &str = "e2e.test";

/// The programs, built.
pub struct Programs {
    directory: PathBuf,
    module: PathBuf,
}

impl Programs {
    /// Builds what is missing.
    ///
    /// # Errors
    /// There is no Go here, or something does not build.
    pub fn build(root: &Path, cache: &Path) -> anyhow::Result<Self> {
        let key = key(root)?;
        let directory = cache.join("go").join(&key);
        let module_file = directory.join("module");
        if !module_file.exists() {
            eprintln!("building the suite and its programs (minutes the first time)");
            std::fs::create_dir_all(&directory)?;
            for (program, module, package) in PROGRAMS {
                let output = directory.join(program);
                go(&root.join(module), &["build"], &output, package)?;
            }
            go(&root.join(MODULES[0]), &["test", "-c"], &directory.join(SUITE), "./suite")?;
            let mut list = command(&root.join(MODULES[0]));
            list.args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]);
            let listed = list.output().context("running go")?;
            anyhow::ensure!(listed.status.success(), "go list: {}", String::from_utf8_lossy(&listed.stderr));
            std::fs::write(&module_file, String::from_utf8(listed.stdout)?.trim())?;
        }
        let module = PathBuf::from(std::fs::read_to_string(module_file)?);
        Ok(Self { directory, module })
    }

    /// A program's file.
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    /// The suite's test binary.
    pub fn suite(&self) -> PathBuf {
        self.directory.join(SUITE)
    }

    /// The directory of the module `k8s.io/kubernetes`.
    pub fn upstream(&self) -> &Path {
        &self.module
    }
}

fn command(module: &Path) -> Command {
    let mut command =
        Command::new(if Path::new("/usr/local/go/bin/go").exists() { "/usr/local/go/bin/go" } else { "go" });
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false -trimpath");
    command
}

fn go(module: &Path, verb: &[&str], output: &Path, package: &str) -> anyhow::Result<()> {
    let linker = format!(
        "-s -w -X k8s.io/component-base/version.gitVersion={VERSION} \
         -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 \
         -X k8s.io/component-base/version.gitTreeState=clean -X k8s.io/client-go/pkg/version.gitVersion={VERSION}"
    );
    let mut build = command(module);
    build.args(verb).args(["-ldflags", &linker, "-o"]).arg(output).arg(package);
    let status = build.status().context("running go; it is needed for the suite")?;
    anyhow::ensure!(status.success(), "{package} does not build");
    Ok(())
}

/// What the programs are made of.
fn key(root: &Path) -> anyhow::Result<String> {
    let mut digest = Digest::default();
    digest.add(VERSION.as_bytes());
    for (program, module, package) in PROGRAMS {
        digest.add(format!("{program} {module} {package}").as_bytes());
    }
    let mut files = Vec::new();
    sources(&root.join(MODULES[0]), &mut files)?;
    files.sort();
    for file in files {
        digest.add(&std::fs::read(file)?);
    }
    Ok(digest.hex()[..16].to_owned())
}

fn sources(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| ["go", "mod", "sum"].map(AsRef::as_ref).contains(&extension))
        {
            files.push(path);
        }
    }
    Ok(())
}
