//! Images that are made here, without a registry.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use anyhow::Context;
use tokio::process::Command;

use super::{Engine, script};

/// Nothing at all: only the supervisor runs in it.
pub const EMPTY: &str = "localhost/hf-empty:1";
/// From scratch, with one static program: `/busybox`. No shell in the PATH, no libc, no users.
pub const SCRATCH: &str = "localhost/hf-scratch:1";
/// A small Debian.
pub const USERLAND: &str = "localhost/hf-userland:1";

impl Engine {
    /// Makes the images that need no time.
    pub(super) async fn make_images(&self) -> anyhow::Result<()> {
        let stage = tempfile::tempdir()?;
        let (empty, scratch) = (stage.path().join("empty"), stage.path().join("scratch"));
        std::fs::create_dir(&empty)?;
        std::fs::create_dir(&scratch)?;
        // An archive without any entry is refused by engines.
        std::fs::write(empty.join("nothing"), "")?;
        std::fs::copy(busybox()?, scratch.join("busybox"))?;
        for (dir, image) in [(&empty, EMPTY), (&scratch, SCRATCH)] {
            let tar = stage.path().join("image.tar");
            let made = Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(&tar).arg(".").status().await?;
            anyhow::ensure!(made.success(), "tar: {made}");
            self.import(&tar, image).await?;
        }
        Ok(())
    }

    /// Makes an image of a static `/busybox` and an executable `/app/entry`, configured by lines of a Dockerfile.
    pub async fn make_app(&self, image: &str, entry: &str, config: &[&str]) -> anyhow::Result<()> {
        let stage = tempfile::tempdir()?;
        let root = stage.path().join("root");
        std::fs::create_dir_all(root.join("app"))?;
        std::fs::copy(busybox()?, root.join("busybox"))?;
        let program = root.join("app/entry");
        std::fs::write(&program, entry)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        let tar = stage.path().join("image.tar");
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().await?;
        anyhow::ensure!(made.success(), "tar: {made}");
        let changes = config.iter().flat_map(|line| ["--change", line]);
        let args: Vec<&str> = ["import"].into_iter().chain(changes).chain(["-", image]).collect();
        self.tool_with(&args, std::fs::File::open(&tar)?.into()).await?;
        Ok(())
    }

    /// Makes the [`USERLAND`] image.
    pub async fn make_userland(&self) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let mut command = Command::new("bash");
        command.arg(script("debian-rootfs")).stdout(file.reopen()?).stderr(Stdio::piped());
        let output = command.spawn()?.wait_with_output().await?;
        anyhow::ensure!(
            output.status.success(),
            "debian-rootfs: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.import(file.path(), USERLAND).await
    }

    /// Makes an image of [`SCRATCH`]'s content and so many MiB that do not compress.
    pub async fn make_large(&self, image: &str, mib: usize) -> anyhow::Result<()> {
        let stage = tempfile::tempdir()?;
        let (dir, tar) = (stage.path().join("large"), stage.path().join("large.tar"));
        std::fs::create_dir(&dir)?;
        std::fs::copy(busybox()?, dir.join("busybox"))?;
        let mut noise = vec![0_u8; mib << 20];
        rand::fill(&mut noise[..]);
        std::fs::write(dir.join("noise"), noise)?;
        let made = Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&tar).arg(".").status().await?;
        anyhow::ensure!(made.success(), "tar: {made}");
        self.import(&tar, image).await
    }

    /// The digest by which a registry knows an image that was pulled.
    pub async fn digest(&self, image: &str) -> anyhow::Result<String> {
        let text = self.tool(&["inspect", "--format", "{{json .RepoDigests}}", image]).await?;
        let all: Vec<String> = serde_json::from_str(text.trim())?;
        let digest = all.iter().find_map(|named| named.split_once('@')).context("it has no digest")?.1;
        Ok(digest.to_owned())
    }

    async fn import(&self, tar: &Path, image: &str) -> anyhow::Result<()> {
        self.tool_with(&["import", "-", image], std::fs::File::open(tar)?.into()).await?;
        Ok(())
    }
}

/// This machine's static busybox.
pub(super) fn busybox() -> anyhow::Result<&'static str> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("no busybox here")
}
