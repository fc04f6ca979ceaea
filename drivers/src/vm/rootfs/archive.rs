//! Which sort of archive it is: a plain tarball of a root, or an image of layers (OCI layout, or `docker save`).
//!
//! An image's archive is unpacked beside the root first, because its index may come last. Blobs are checked against
//! their digests.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Budget, RootfsError, entries, layer, open, remove_all};

/// The largest index or manifest, in bytes.
const MAX_JSON: u64 = 4 << 20;
/// The most layers. Docker allows 127.
const MAX_LAYERS: usize = 512;
/// How deep an index may point to an index: image index, then manifest.
const MAX_DEPTH: usize = 3;

/// Unpacks an archive to `root`, which is there and empty.
pub(super) fn unpack(path: &Path, root: &Path, budget: &mut Budget) -> Result<(), RootfsError> {
    if !is_image(path)? {
        return layer::apply(open(path)?, root, budget);
    }
    let blobs = Blobs(root.with_extension("image"));
    remove_all(&blobs.0)?;
    fs::create_dir(&blobs.0)?;
    layer::apply(open(path)?, &blobs.0, budget)?;
    let layers = if blobs.0.join("index.json").is_file() { blobs.oci()? } else { blobs.docker()? };
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(RootfsError::Archive(format!("is an image of {} layers", layers.len())));
    }
    for layer in layers {
        layer::apply(open(&layer)?, root, budget)?;
    }
    Ok(())
}

/// An image names itself at its top.
fn is_image(path: &Path) -> Result<bool, RootfsError> {
    let found = entries::each(open(path)?, |entry| {
        let name = entry.path().map_err(RootfsError::NotTar)?;
        let name = name.strip_prefix("./").unwrap_or(&name);
        if name == Path::new("oci-layout") || name == Path::new("manifest.json") {
            return Ok(Some(true));
        }
        // An image has blobs beside these, and nothing else: a root file system shows itself soon.
        let is_other = name.components().count() > 1 && !name.starts_with("blobs") && !is_docker_layer(name);
        Ok(is_other.then_some(false))
    });
    Ok(found?.unwrap_or(false))
}

/// Old `docker save`: `<64 hex digits>/layer.tar`, `/json`, `/VERSION`.
fn is_docker_layer(name: &Path) -> bool {
    name.components().next().is_some_and(|first| {
        let first = first.as_os_str().to_string_lossy();
        first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// An unpacked image, until dropped.
struct Blobs(PathBuf);

impl Drop for Blobs {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "an unpacked image cannot be removed");
        }
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default, rename = "mediaType")]
    media_type: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct DockerImage {
    #[serde(rename = "Layers")]
    layers: Vec<PathBuf>,
}

impl Blobs {
    fn oci(&self) -> Result<Vec<PathBuf>, RootfsError> {
        let mut index: Index = parse(&self.0.join("index.json"))?;
        for _ in 0..MAX_DEPTH {
            let chosen = choose(index.manifests)?;
            let blob = self.blob(&chosen.digest)?;
            if !chosen.media_type.contains("index") && !chosen.media_type.contains("manifest.list") {
                let manifest: Manifest = parse(&blob)?;
                return manifest.layers.iter().map(|layer| self.blob(&layer.digest)).collect();
            }
            index = parse(&blob)?;
        }
        Err(RootfsError::Archive("has an index in an index in an index".to_owned()))
    }

    fn docker(&self) -> Result<Vec<PathBuf>, RootfsError> {
        let images: Vec<DockerImage> = parse(&self.0.join("manifest.json"))?;
        let [image] = images.as_slice() else {
            return Err(RootfsError::Archive(format!("has {} images: save one", images.len())));
        };
        image.layers.iter().map(|layer| self.inside(layer)).collect()
    }

    /// A blob by its digest, which it has.
    fn blob(&self, digest: &str) -> Result<PathBuf, RootfsError> {
        let hex = digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(hex) = hex else {
            return Err(RootfsError::Archive(format!("{digest:?} is no sha256 digest")));
        };
        let path = self.inside(&Path::new("blobs/sha256").join(hex))?;
        let (mut file, mut hash) = (File::open(&path)?, Sha256::new());
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece)? {
                0 => break,
                length => hash.update(&piece[..length]),
            }
        }
        let is = hash.finalize();
        let same =
            (0..32).all(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).is_ok_and(|byte| byte == is[n]));
        if same { Ok(path) } else { Err(RootfsError::Archive(format!("the blob {hex} has another content"))) }
    }

    /// A file of the image, and no link out of it.
    fn inside(&self, name: &Path) -> Result<PathBuf, RootfsError> {
        let missing = || RootfsError::Archive(format!("has no {}", name.display()));
        let path = self.0.join(name).canonicalize().map_err(|_| missing())?;
        let root = self.0.canonicalize()?;
        if path.starts_with(root) && path.is_file() { Ok(path) } else { Err(missing()) }
    }
}

/// The one for this processor; an image without platforms has one.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, RootfsError> {
    let wanted = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let count = manifests.len();
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == wanted;
    manifests
        .into_iter()
        .find(|manifest| manifest.platform.as_ref().map_or(count == 1, fits))
        .ok_or_else(|| RootfsError::Archive(format!("has no image for linux/{wanted}")))
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, RootfsError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut text = Vec::new();
    let file = File::open(path).map_err(|source| RootfsError::Entry { entry: name.clone(), source })?;
    file.take(MAX_JSON).read_to_end(&mut text)?;
    serde_json::from_slice(&text)
        .map_err(|error| RootfsError::Archive(format!("{name} does not parse: {error}")))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::tar_of, *};

    fn sha(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unpack_bytes(bytes: &[u8]) -> Result<tempfile::TempDir, RootfsError> {
        let temp = tempfile::tempdir().unwrap();
        let (archive, root) = (temp.path().join("a.tar"), temp.path().join("root"));
        fs::write(&archive, bytes).unwrap();
        fs::create_dir(&root).unwrap();
        unpack(&archive, &root, &mut Budget { bytes: 1 << 20, entries: 1000 })?;
        let mut left: Vec<_> =
            fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a.tar", "root"], "something is left beside the root");
        Ok(temp)
    }

    fn oci(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let lower = tar_of(&[("bin/sh", b"shell"), ("old", b"x")]);
        let mut upper = tar_of(&[(".wh.old", b""), ("new", b"y")]);
        let (lower_sha, upper_sha) = (sha(&lower), sha(&upper));
        change(&mut upper);
        let layer = |sha: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{sha}","size":1}}"#
            )
        };
        let manifest =
            format!(r#"{{"schemaVersion":2,"layers":[{},{}]}}"#, layer(&lower_sha), layer(&upper_sha));
        let manifest_sha = sha(manifest.as_bytes());
        let index = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{manifest_sha}","size":1}}]}}"#
        );
        tar_of(&[
            (&format!("blobs/sha256/{lower_sha}"), &lower),
            (&format!("blobs/sha256/{upper_sha}"), &upper),
            (&format!("blobs/sha256/{manifest_sha}"), manifest.as_bytes()),
            ("index.json", index.as_bytes()),
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ])
    }

    #[test]
    fn an_oci_archives_layers_become_one_root() {
        let temp = unpack_bytes(&oci(|_| {})).unwrap();
        let root = temp.path().join("root");
        assert_eq!(fs::read(root.join("bin/sh")).unwrap(), b"shell");
        assert!(root.join("new").exists() && !root.join("old").exists() && !root.join("index.json").exists());
    }

    #[test]
    fn a_blob_with_another_content_is_refused() {
        let error = unpack_bytes(&oci(|upper| upper.extend([0; 512]))).unwrap_err().to_string();
        assert!(error.contains("another content"), "{error}");
    }

    #[test]
    fn a_docker_archives_layers_become_one_root() {
        let layer = tar_of(&[("etc/x", b"1")]);
        let name = "a".repeat(64);
        let manifest = format!(r#"[{{"Config":"c.json","Layers":["{name}/layer.tar"]}}]"#);
        let bytes = tar_of(&[
            (&format!("{name}/layer.tar"), &layer),
            (&format!("{name}/json"), b"{}"),
            ("manifest.json", manifest.as_bytes()),
        ]);
        let temp = unpack_bytes(&bytes).unwrap();
        assert!(temp.path().join("root/etc/x").exists());
    }

    #[test]
    fn a_plain_root_is_no_image() {
        let temp = unpack_bytes(&tar_of(&[("bin/sh", b"s"), ("manifest.json", b"mine")])).unwrap();
        assert_eq!(fs::read(temp.path().join("root/manifest.json")).unwrap(), b"mine");
    }
}
