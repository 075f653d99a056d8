//! A virtual machine with a kernel of its own, for what the kernel here lacks: cgroup v2 alone, all capabilities.
//!
//! qemu without hardware's help boots Debian's cloud kernel on a small disk that has copies of this machine's programs. The
//! program that runs inside is the test's own executable, so both sides are one file. `deploy/test.sh` fetches the kernel.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::machine::{images, output};
use crate::program;

const DISK_BYTES: u64 = 4 << 30;
const MEMORY_MIB: &str = "3072";
/// What the first program says last, with the exit code of the test behind it.
const VERDICT: &str = "verdict of the machine: ";
/// Programs of this machine that a node needs, and a shell.
const PROGRAMS: &[&str] = &[
    "/bin/busybox",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/sbin/runc",
    "/usr/sbin/nft",
    "/usr/sbin/ip",
];
const CNI_DIR: &str = "/usr/lib/cni";
const CNI_PLUGINS: &[&str] = &["ptp", "host-local", "loopback", "portmap"];
/// What a node loads, as an installed system does by itself.
const MODULES: &str = "overlay veth nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_reject_inet nft_numgen nft_fib_inet";
/// The first program: finds the disk and goes on there, since containers cannot have the first root for theirs.
const FIRST: &str = "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
modprobe -a virtio_pci virtio_blk
mount -t ext4 /dev/vda /disk || echo no disk
mount --move /dev /disk/dev
exec switch_root /disk /init
";

/// What this machine lacks to run another.
#[must_use]
pub fn lacks() -> Vec<&'static str> {
    let mut lacks = crate::machine::lacks();
    let has = [
        (kernel().is_ok(), "a kernel for a virtual machine (deploy/test.sh fetches it)"),
        (which("qemu-system-x86_64").is_some(), "qemu-system-x86"),
        (which("busybox").is_some() && which("cpio").is_some(), "busybox-static and cpio"),
        (which("mke2fs").is_some(), "e2fsprogs"),
    ];
    lacks.extend(has.into_iter().filter(|(has, _)| !has).map(|(_, what)| what));
    lacks
}

/// Runs this executable with `arguments` inside a machine whose cgroups are of version 2, and returns what it printed.
///
/// # Errors
/// When the machine cannot be made or does not end in time, or the program inside fails: with what it printed.
pub fn run(arguments: &str, limit: Duration) -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let (kernel, modules) = kernel()?;
    let initrd = first_files(dir.path(), &modules).context("make the first files")?;
    let disk = disk(dir.path(), &modules, arguments).context("make the disk")?;
    let drive = format!("file={},if=virtio,format=raw,cache=unsafe", disk.display());
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY_MIB])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init", "-drive", &drive])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu")?;
    let mut said = qemu.stdout.take().context("no serial line")?;
    let (told, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = said.read_to_end(&mut text);
        told.send(read.map(|_| String::from_utf8_lossy(&text).into_owned())).is_ok()
    });
    // The line is closed when the machine ends by itself; else it is too late.
    let text = match heard.recv_timeout(limit) {
        Ok(text) => text?,
        Err(_) => {
            qemu.kill()?;
            heard.recv()??
        }
    };
    qemu.wait()?;
    match text.rsplit_once(VERDICT) {
        Some((said, verdict)) if verdict.trim_start().starts_with('0') => Ok(said.to_owned()),
        Some((said, _)) => bail!("failed inside the machine:\n{said}"),
        None => bail!("no verdict from the machine within {limit:?}:\n{text}"),
    }
}

/// The kernel and the directory of its modules, as they came out of Debian's package.
fn kernel() -> anyhow::Result<(PathBuf, PathBuf)> {
    let home = std::env::home_dir().unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from);
    let root = cache.join("ironclad-vm");
    let only = |dir: &str| -> anyhow::Result<PathBuf> {
        let listed = std::fs::read_dir(root.join(dir))?.flatten().map(|entry| entry.path());
        let mut found = listed.filter(|path| {
            path.is_dir()
                || path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
        });
        found.next().with_context(|| format!("nothing in {}", root.join(dir).display()))
    };
    Ok((only("boot")?, only("lib/modules")?))
}

fn which(name: &str) -> Option<PathBuf> {
    let paths = std::env::var("PATH").unwrap_or_default();
    paths.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// The archive that the kernel unpacks first: a shell and the disk's driver.
fn first_files(dir: &Path, modules: &Path) -> anyhow::Result<PathBuf> {
    let root = dir.join("first");
    for empty in ["bin", "dev", "disk"] {
        std::fs::create_dir_all(root.join(empty))?;
    }
    std::fs::copy(which("busybox").context("no busybox")?, root.join("bin/busybox"))?;
    executable(&root.join("init"), FIRST)?;
    copy_modules(modules, &root, &["drivers/virtio", "drivers/block"])?;
    let archive = dir.join("first.cpio");
    let pack = format!(
        "cd {} && find . | cpio --quiet -o -H newc > {}",
        root.display(),
        archive.display()
    );
    output("sh", &["-c", &pack])?;
    Ok(archive)
}

/// A disk with all that a node needs, the test's executable among it.
fn disk(dir: &Path, modules: &Path, arguments: &str) -> anyhow::Result<PathBuf> {
    let root = dir.join("root");
    for empty in ["proc", "sys", "dev", "tmp", "run", "bin", "etc", "var/lib", "target/debug/deps"]
    {
        std::fs::create_dir_all(root.join(empty))?;
    }
    for path in PROGRAMS {
        let name = path.rsplit('/').next().unwrap_or(path);
        let found = which(name).with_context(|| format!("no {name}"))?;
        install(&found, &root.join(&path[1..]), &root)?;
    }
    for plugin in CNI_PLUGINS {
        let path = Path::new(CNI_DIR).join(plugin);
        install(&path, &root.join(&CNI_DIR[1..]).join(plugin), &root)?;
    }
    // As cargo lays them out, so that the test finds its programs inside as it does here.
    let target = root.join("target");
    std::fs::write(target.join("CACHEDIR.TAG"), "")?;
    install(&program("ironclad")?, &target.join("debug/ironclad"), &root)?;
    install(&std::env::current_exe()?, &target.join("debug/deps/test"), &root)?;
    for image in ["ironclad-pause", "ironclad-demo"] {
        let place = format!("{}-unknown-linux-gnu/release/{image}", std::env::consts::ARCH);
        install(&images().join(image), &target.join(place), &root)?;
    }
    copy_modules(modules, &root, &["fs/overlayfs", "drivers/net", "net", "lib", "crypto"])?;
    for (file, text) in
        [("hosts", "127.0.0.1 localhost vm\n"), ("resolv.conf", ""), ("hostname", "vm\n")]
    {
        std::fs::write(root.join("etc").join(file), text)?;
    }
    executable(&root.join("init"), &second(arguments))?;
    let image = dir.join("disk");
    std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
    let (from, to) = (root.display().to_string(), image.display().to_string());
    output("mke2fs", &["-q", "-t", "ext4", "-O", "^has_journal", "-d", &from, &to])?;
    std::fs::remove_dir_all(&root)?;
    Ok(image)
}

/// What runs on the disk: makes a system of it, runs the test, says how it went, and ends the machine.
fn second(arguments: &str) -> String {
    format!(
        "#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/shm /dev/pts && mount -t devpts pts /dev/pts
hostname vm
modprobe -a {MODULES}
/target/debug/deps/test {arguments} 2>&1
echo '{VERDICT}'$?
poweroff -f
"
    )
}

fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

/// Copies a program without what only a debugger needs, and the libraries that it loads.
fn install(from: &Path, to: &Path, root: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to.parent().context("a path without a directory")?)?;
    let (source, goal) = (from.display().to_string(), to.display().to_string());
    output("strip", &["--strip-debug", "-o", &goal, &source])?;
    // A static program has no libraries, and ldd says so by failing.
    let Ok(libraries) = output("ldd", &[&source]) else { return Ok(()) };
    for word in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(&word[1..]);
        if !place.exists() {
            std::fs::create_dir_all(place.parent().context("a path without a directory")?)?;
            std::fs::copy(word, place).with_context(|| format!("copy {word}"))?;
        }
    }
    Ok(())
}

/// Copies parts of the kernel's modules and says how they depend on each other.
fn copy_modules(modules: &Path, root: &Path, parts: &[&str]) -> anyhow::Result<()> {
    let release = modules.file_name().context("no release")?.to_string_lossy().into_owned();
    let place = root.join("lib/modules").join(&release);
    std::fs::create_dir_all(place.join("kernel"))?;
    for part in parts {
        let (from, to) = (modules.join("kernel").join(part), place.join("kernel").join(part));
        ensure!(from.exists(), "the kernel has no {part}");
        std::fs::create_dir_all(to.parent().context("a path without a directory")?)?;
        output("cp", &["-r", &from.display().to_string(), &to.display().to_string()])?;
    }
    for list in ["modules.builtin", "modules.order", "modules.builtin.modinfo"] {
        std::fs::copy(modules.join(list), place.join(list))?;
    }
    output("busybox", &["depmod", "-b", &root.display().to_string(), &release]).map(drop)
}
