//! Trees through a stream and out again: what is kept, what is refused, and what is left when it fails.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use holdfast_files::{
    Emitter, Failure, Window, Writer, archive,
    emit::plain_entry,
    place::Destination,
    read::{self, Source},
    tally::Tally,
    write::{Options, Progress},
};
use holdfast_wire::{
    api::{FileEntry, FileFailureKind, FileKind, FileProblemKind, TransferResult, UploadPlacement},
    files::Frame,
};
use proptest::prelude::*;
use rustix::fs::{FileType, Mode};

struct Here {
    dir: tempfile::TempDir,
}

impl Here {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// No temporary file is left anywhere.
    fn is_clean(&self) {
        let mut left = Vec::new();
        let mut stack = vec![self.dir.path().to_owned()];
        while let Some(dir) = stack.pop() {
            for item in fs::read_dir(dir).unwrap() {
                let item = item.unwrap();
                if item.file_type().unwrap().is_dir() {
                    stack.push(item.path());
                } else if item.file_name().to_string_lossy().starts_with(".holdfast-") {
                    left.push(item.path());
                }
            }
        }
        assert!(left.is_empty(), "{left:?}");
    }
}

fn writer(to: &Path, name: &str, placement: UploadPlacement) -> Writer {
    let to = Destination { path: to.to_owned(), name: name.into(), placement };
    Writer::new(Options { to, archive: false, word: "test".to_owned() })
}

type Wrote = (Result<TransferResult, Failure>, Writer);

/// Takes all that `window` has.
fn take_all(window: &Window, mut writer: Writer) -> Wrote {
    while let Some(chunk) = window.take_blocking() {
        match writer.take(chunk) {
            Ok(Progress::More) => {}
            Ok(Progress::Done(result)) => return (Ok(result), writer),
            Err(failure) => {
                window.close();
                return (Err(failure), writer);
            }
        }
    }
    (Err(Failure::abandoned("ended early")), writer)
}

/// From a source to a destination, through a window much smaller than what goes through.
fn copy(source: Source, to: Writer) -> Wrote {
    let window = Window::new(256 << 10);
    std::thread::scope(|scope| {
        scope.spawn(|| read::send(&source, &window, &|_, _| {}));
        take_all(&window, to)
    })
}

fn cp(from: &Path, to: &Path) -> Result<TransferResult, Failure> {
    let name = from.file_name().unwrap().to_str().unwrap().to_owned();
    copy(Source { path: from.to_owned(), ..Source::default() }, writer(to, &name, UploadPlacement::Copy)).0
}

/// These frames, with an honest end.
fn frames(entries: &[Frame]) -> Bytes {
    let (mut out, mut tally) = (BytesMut::new(), Tally::default());
    for frame in entries {
        match frame {
            Frame::Entry(payload) => tally.on_entry(payload, FileKind::Unspecified),
            Frame::Data(data) => tally.on_data(data),
            Frame::Hole(length) => tally.on_hole(*length),
            Frame::Close => tally.on_close(),
            Frame::Drop => tally.on_drop(),
            _ => {}
        }
        frame.encode(&mut out);
    }
    Frame::End(tally.end(0)).encode(&mut out);
    out.freeze()
}

fn entry(path: &[u8], kind: FileKind, target: &[u8]) -> Frame {
    let entry = plain_entry(Bytes::copy_from_slice(path), kind, 0o755);
    Frame::entry(&FileEntry { target: Bytes::copy_from_slice(target), ..entry })
}

fn file(path: &[u8], content: &'static [u8]) -> [Frame; 3] {
    [entry(path, FileKind::File, b""), Frame::Data(Bytes::from_static(content)), Frame::Close]
}

fn root() -> Frame {
    entry(b"", FileKind::Directory, b"")
}

#[test]
fn a_tree_arrives_with_modes_times_and_links() {
    let here = Here::new();
    let program = here.file("src/bin/run", "#!/bin/sh\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o750)).unwrap();
    here.file("src/data/big", vec![7; 3 << 20]);
    here.file("src/data/empty", "");
    here.file(&format!("src/{}", "n".repeat(255)), "long name");
    fs::write(here.at("src").join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "not UTF-8").unwrap();
    symlink("bin/run", here.at("src/link")).unwrap();
    symlink("/nowhere/at/all", here.at("src/dangling")).unwrap();
    fs::hard_link(here.at("src/data/big"), here.at("src/data/again")).unwrap();
    let past = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 },
    };
    for path in ["src/bin/run", "src/bin", "src/data"] {
        rustix::fs::utimensat(rustix::fs::CWD, here.at(path), &past, rustix::fs::AtFlags::empty()).unwrap();
    }
    // One that its own user may not write into, which has to be filled all the same.
    fs::set_permissions(here.at("src/data"), fs::Permissions::from_mode(0o555)).unwrap();

    let result = cp(&here.at("src"), &here.at("dst")).unwrap();
    assert_eq!(result.path, here.at("dst").as_os_str().as_bytes());
    assert_eq!(fs::metadata(here.at("dst/bin/run")).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::metadata(here.at("dst/data")).unwrap().mode() & 0o7777, 0o555);
    for path in ["dst/bin/run", "dst/bin", "dst/data"] {
        let found = fs::metadata(here.at(path)).unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_000, 123_456_789), "{path}");
    }
    assert_eq!(fs::read_link(here.at("dst/link")).unwrap(), Path::new("bin/run"));
    assert_eq!(fs::read_link(here.at("dst/dangling")).unwrap(), Path::new("/nowhere/at/all"));
    assert_eq!(fs::read(here.at("dst/data/big")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(
        fs::metadata(here.at("dst/data/big")).unwrap().ino(),
        fs::metadata(here.at("dst/data/again")).unwrap().ino()
    );
    assert_eq!(
        fs::read(here.at("dst").join(std::ffi::OsStr::from_bytes(b"\xff\xfe"))).unwrap(),
        b"not UTF-8"
    );
    here.is_clean();
    // And once more over itself: everything is replaced, nothing is in the way.
    fs::set_permissions(here.at("dst/data"), fs::Permissions::from_mode(0o755)).unwrap();
    let again = copy(
        Source { path: here.at("src"), ..Source::default() },
        writer(&here.at("dst"), "", UploadPlacement::Contents),
    );
    assert_eq!(again.0.unwrap().digest, result.digest);
    here.is_clean();
    for path in ["src/data", "dst/data"] {
        fs::set_permissions(here.at(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn places_are_dockers() {
    let here = Here::new();
    let f = here.file("f", "new");
    here.file("d/inner", "inner");
    fs::create_dir(here.at("there")).unwrap();
    let slash = |path: &str| PathBuf::from(format!("{}/", here.at(path).display()));
    // A file: to a new name, over a file, into a directory, not into one that is not there.
    cp(&f, &here.at("named")).unwrap();
    assert_eq!(fs::read(here.at("named")).unwrap(), b"new");
    here.file("old", "old");
    cp(&f, &here.at("old")).unwrap();
    assert_eq!(fs::read(here.at("old")).unwrap(), b"new");
    assert_eq!(cp(&f, &here.at("there")).unwrap().path, here.at("there/f").as_os_str().as_bytes());
    let refused = cp(&f, &slash("missing")).unwrap_err();
    assert_eq!(refused.kind, FileFailureKind::NotFound);
    assert!(refused.message.contains("must exist"), "{refused}");
    assert_eq!(cp(&f, &slash("old")).unwrap_err().kind, FileFailureKind::WrongKind);
    assert_eq!(cp(&f, &here.at("no/such/parent")).unwrap_err().errno, 2);
    // A directory: to a new name, into a directory, never onto a file.
    cp(&here.at("d"), &here.at("fresh")).unwrap();
    assert_eq!(fs::read(here.at("fresh/inner")).unwrap(), b"inner");
    cp(&here.at("d"), &here.at("there")).unwrap();
    assert_eq!(fs::read(here.at("there/d/inner")).unwrap(), b"inner");
    assert_eq!(cp(&here.at("d"), &here.at("old")).unwrap_err().kind, FileFailureKind::WrongKind);
    // Its content.
    let source = || Source { path: here.at("d"), ..Source::default() };
    copy(source(), writer(&here.at("there"), "", UploadPlacement::Contents)).0.unwrap();
    assert_eq!(fs::read(here.at("there/inner")).unwrap(), b"inner");
    // Through a link to a file: what it names is replaced, the link stays.
    symlink("old", here.at("alias")).unwrap();
    here.file("f", "newer");
    cp(&f, &here.at("alias")).unwrap();
    assert_eq!(fs::read(here.at("old")).unwrap(), b"newer");
    assert!(fs::symlink_metadata(here.at("alias")).unwrap().is_symlink());
    // A directory in the place of a file, and the other way round, deeper in.
    here.file("clash/inner/x", "x");
    let refused = cp(&here.at("d"), &here.at("clash")).map(|_| ());
    assert!(refused.is_ok(), "d becomes clash/d");
    let onto = copy(source(), writer(&here.at("clash"), "", UploadPlacement::Contents)).0.unwrap_err();
    assert_eq!(onto.kind, FileFailureKind::WrongKind, "{onto}");
    here.is_clean();
}

#[test]
fn a_link_is_copied_as_a_link_unless_it_is_followed() {
    let here = Here::new();
    here.file("real", "content");
    symlink("real", here.at("link")).unwrap();
    cp(&here.at("link"), &here.at("copy")).unwrap();
    assert!(fs::symlink_metadata(here.at("copy")).unwrap().is_symlink());
    let followed = Source { path: here.at("link"), follow: true, ..Source::default() };
    copy(followed, writer(&here.at("whole"), "link", UploadPlacement::Copy)).0.unwrap();
    assert!(fs::symlink_metadata(here.at("whole")).unwrap().is_file());
}

#[test]
fn special_files_are_skipped_and_named() {
    let here = Here::new();
    here.file("src/plain", "plain");
    rustix::fs::mknodat(rustix::fs::CWD, here.at("src/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(here.at("src/socket")).unwrap();
    let (result, writer) = copy(
        Source { path: here.at("src"), ..Source::default() },
        writer(&here.at("dst"), "src", UploadPlacement::Copy),
    );
    assert_eq!(result.unwrap().files, 1);
    let mut named: Vec<_> = writer.problems().iter().map(|p| (p.path.to_vec(), p.kind())).collect();
    named.sort();
    assert_eq!(
        named,
        [(b"fifo".to_vec(), FileProblemKind::Special), (b"socket".to_vec(), FileProblemKind::Special)]
    );
    // As the source itself, it is refused, and not waited for.
    let refused = cp(&here.at("src/fifo"), &here.at("x")).unwrap_err();
    assert!(refused.message.contains("FIFO"), "{refused}");
}

#[test]
fn a_sparse_file_stays_sparse() {
    let here = Here::new();
    let file = fs::File::create(here.at("sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 32 << 20).unwrap();
    cp(&here.at("sparse"), &here.at("copy")).unwrap();
    let (was, is) = (fs::metadata(here.at("sparse")).unwrap(), fs::metadata(here.at("copy")).unwrap());
    assert_eq!((is.len(), was.len()), (64 << 20, 64 << 20));
    assert!(is.blocks() <= was.blocks() + 16, "{} blocks became {}", was.blocks(), is.blocks());
    assert_eq!(fs::read(here.at("copy")).unwrap(), fs::read(here.at("sparse")).unwrap());
}

#[test]
fn what_is_not_there_says_path_and_errno() {
    let here = Here::new();
    let failure = cp(&here.at("missing"), &here.at("dst")).unwrap_err();
    assert_eq!((failure.kind, failure.errno), (FileFailureKind::NotFound, 2));
    assert!(failure.message.contains("missing") && failure.message.contains("ENOENT"), "{failure}");
    assert!(!here.at("dst").exists());
}

#[test]
fn what_vanishes_on_the_way_is_named_and_the_rest_comes() {
    let here = Here::new();
    for n in 0..2000 {
        here.file(&format!("src/{n:04}"), [b'x'; 1024]);
    }
    // A window this small holds the walk up at its beginning.
    let window = Window::new(1);
    let source = Source { path: here.at("src"), ..Source::default() };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read::send(&source, &window, &|_, _| {}).unwrap());
        let mut to = writer(&here.at("dst"), "src", UploadPlacement::Copy);
        assert_eq!(to.take(window.take_blocking().unwrap()).unwrap(), Progress::More);
        let mut removed = 0;
        for n in 0..2000 {
            removed += u32::from(n % 2 == 0 && fs::remove_file(here.at(&format!("src/{n:04}"))).is_ok());
        }
        assert_eq!(removed, 1000);
        let (result, to) = take_all(&window, to);
        let (result, summary) = (result.unwrap(), reader.join().unwrap());
        assert!(result.files >= 1000, "{result:?}");
        assert_eq!(summary.end.problems, to.problems().len() as u64);
        // Names that the directory had listed already. The rest is not there to be listed.
        assert!(to.problems().iter().all(|p| p.kind() == FileProblemKind::Vanished && p.errno == 2));
        assert!(!to.problems().is_empty());
    });
    here.is_clean();
}

#[test]
fn an_archives_tricks_do_not_lead_out() {
    let hostile: Vec<(&str, Vec<Frame>)> = vec![
        ("absolute", [vec![root()], file(b"/outside/x", b"!").to_vec()].concat()),
        ("up", [vec![root()], file(b"../outside/x", b"!").to_vec()].concat()),
        ("up in the middle", [vec![root()], file(b"a/../../outside/x", b"!").to_vec()].concat()),
        (
            "through its own link",
            [vec![root(), entry(b"l", FileKind::Symlink, b"../outside")], file(b"l/x", b"!").to_vec()]
                .concat(),
        ),
        (
            "through an absolute link",
            [vec![root(), entry(b"l", FileKind::Symlink, b"/tmp")], file(b"l/x", b"!").to_vec()].concat(),
        ),
        (
            "a directory over a link",
            vec![
                root(),
                entry(b"l", FileKind::Symlink, b"../outside"),
                entry(b"l", FileKind::Directory, b""),
            ],
        ),
        ("a link to above", vec![root(), entry(b"h", FileKind::Hardlink, b"../outside/secret")]),
        ("a link to an absolute path", vec![root(), entry(b"h", FileKind::Hardlink, b"/etc/passwd")]),
        (
            "a hard link through a link",
            vec![
                root(),
                entry(b"l", FileKind::Symlink, b"../outside"),
                entry(b"h", FileKind::Hardlink, b"l/secret"),
            ],
        ),
        ("a name that is a path, twice", vec![root(), root()]),
        ("a device", vec![root(), entry(b"d", FileKind::Device, b"")]),
        ("below a file", [file(b"", b"root").to_vec(), file(b"x", b"!").to_vec()].concat()),
        ("no root", file(b"x", b"!").to_vec()),
        ("content without a file", vec![root(), Frame::Data(Bytes::from_static(b"!"))]),
        (
            "an endless file",
            vec![root(), entry(b"f", FileKind::File, b""), Frame::Hole(u64::MAX), Frame::Close],
        ),
        ("an entry inside a file", vec![root(), entry(b"f", FileKind::File, b""), root()]),
    ];
    for (name, hostile) in hostile {
        let here = Here::new();
        here.file("outside/secret", "secret");
        let mut to = writer(&here.at("dst"), "src", UploadPlacement::Copy);
        let failed = to.take(frames(&hostile)).unwrap_err();
        drop(to);
        let inside: Vec<_> = fs::read_dir(here.at("outside")).unwrap().collect();
        assert_eq!(inside.len(), 1, "{name}: {failed}");
        assert!(!here.at("x").exists() && !here.at("dst/h").exists(), "{name}");
        assert_eq!(fs::read(here.at("outside/secret")).unwrap(), b"secret", "{name}");
        here.is_clean();
    }
}

#[test]
fn a_file_in_the_place_of_a_link_does_not_go_through_it() {
    let here = Here::new();
    here.file("outside/secret", "secret");
    let through =
        [vec![root(), entry(b"l", FileKind::Symlink, b"../outside/secret")], file(b"l", b"new").to_vec()];
    let mut to = writer(&here.at("dst"), "src", UploadPlacement::Copy);
    assert!(matches!(to.take(frames(&through.concat())).unwrap(), Progress::Done(_)));
    assert_eq!(fs::read(here.at("outside/secret")).unwrap(), b"secret");
    assert_eq!(fs::read(here.at("dst/l")).unwrap(), b"new");
}

#[test]
fn what_differs_is_never_done() {
    let here = Here::new();
    let honest = frames(&[vec![root()], file(b"x", b"content").to_vec()].concat());
    let at = honest.windows(7).position(|window| window == b"content").unwrap();
    let mut changed = honest.to_vec();
    changed[at] ^= 1;
    let failed = writer(&here.at("dst"), "src", UploadPlacement::Copy).take(changed.into()).unwrap_err();
    assert_eq!(failed.kind, FileFailureKind::Mismatch, "{failed}");
    // Cut short, it is not done either, and nothing has its name.
    let here = Here::new();
    let mut to = writer(&here.at("dst"), "src", UploadPlacement::Copy);
    assert_eq!(to.take(honest.slice(..at + 3)).unwrap(), Progress::More);
    drop(to);
    assert!(!here.at("dst/x").exists());
    here.is_clean();
}

#[test]
fn a_setuid_bit_comes_only_with_the_owner() {
    let here = Here::new();
    let mut setuid = plain_entry(Bytes::new(), FileKind::File, 0o4755);
    (setuid.uid, setuid.gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let stream = frames(&[Frame::entry(&setuid), Frame::Close]);
    for (archive, mode) in [(false, 0o755), (true, 0o4755)] {
        let to = Destination {
            path: here.at(if archive { "kept" } else { "plain" }),
            name: "x".into(),
            placement: UploadPlacement::Copy,
        };
        let path = to.path.clone();
        let mut to = Writer::new(Options { to, archive, word: "w".into() });
        to.take(stream.clone()).unwrap();
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, mode);
    }
}

#[test]
fn an_archive_comes_in_and_goes_out() {
    let here = Here::new();
    here.file("src/a/deep", "deep");
    here.file(&format!("src/{}/{}", "d".repeat(120), "f".repeat(120)), "long");
    symlink("a/deep", here.at("src/link")).unwrap();
    // Out.
    let window = Window::new(256 << 10);
    let mut tar = Vec::new();
    let source = Source { path: here.at("src"), ..Source::default() };
    std::thread::scope(|scope| {
        scope.spawn(|| read::send(&source, &window, &|_, _| {}).map(drop));
        let mut packer = archive::Packer::new(&mut tar, b"src".to_vec());
        while let Some(chunk) = window.take_blocking() {
            if packer.take(chunk).unwrap() {
                break;
            }
        }
        assert_eq!(packer.end().unwrap().files, 2);
    });
    // In.
    fs::create_dir(here.at("dst")).unwrap();
    let window = Window::new(256 << 10);
    let (result, _) = std::thread::scope(|scope| {
        scope.spawn(|| archive::send(&tar[..], &window, &|_, _| {}).map(drop));
        take_all(&window, writer(&here.at("dst"), "", UploadPlacement::Into))
    });
    assert_eq!(result.unwrap().files, 2);
    assert_eq!(fs::read(here.at("dst/src/a/deep")).unwrap(), b"deep");
    let long = format!("dst/src/{}/{}", "d".repeat(120), "f".repeat(120));
    assert_eq!(fs::read(here.at(&long)).unwrap(), b"long");
    assert_eq!(fs::read_link(here.at("dst/src/link")).unwrap(), Path::new("a/deep"));
    // Cut short, it is an error.
    let window = Window::new(256 << 10);
    let (result, _) = std::thread::scope(|scope| {
        scope.spawn(|| archive::send(&tar[..tar.len() / 2], &window, &|_, _| {}).map(drop));
        take_all(&window, writer(&here.at("dst"), "", UploadPlacement::Into))
    });
    assert_eq!(result.unwrap_err().kind, FileFailureKind::Invalid);
}

#[test]
fn a_hostile_archive_is_refused() {
    let make = |kind: tar::EntryType, name: &[u8], size: u64| {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for (name, bytes, kind) in [
        ("up", make(tar::EntryType::Regular, b"../x", 0), FileFailureKind::Escapes),
        ("absolute", make(tar::EntryType::Regular, b"/x", 0), FileFailureKind::Escapes),
        ("endless name", make(tar::EntryType::GNULongName, b"x", 1 << 33), FileFailureKind::Invalid),
        ("endless PAX header", make(tar::EntryType::XHeader, b"x", 1 << 33), FileFailureKind::Invalid),
        ("nonsense", vec![0x55; 2048], FileFailureKind::Invalid),
    ] {
        let here = Here::new();
        let window = Window::new(256 << 10);
        let (result, _) = std::thread::scope(|scope| {
            scope.spawn(|| archive::send(&bytes[..], &window, &|_, _| {}).map(drop));
            take_all(&window, writer(here.dir.path(), "", UploadPlacement::Into))
        });
        assert_eq!(result.unwrap_err().kind, kind, "{name}");
    }
}

#[test]
fn a_reader_whose_stream_nobody_wants_ends() {
    let here = Here::new();
    here.file("big", vec![1; 4 << 20]);
    let window = Window::new(64 << 10);
    window.close();
    let source = Source { path: here.at("big"), ..Source::default() };
    assert!(read::send(&source, &window, &|_, _| {}).is_err());
    assert!(Emitter::new(&window).end().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the stream is cut, and whatever of it comes twice, the same bytes come out, once.
    #[test]
    fn a_window_gives_every_byte_once(cuts in proptest::collection::vec((1usize..40, 0usize..60), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let sent: Vec<u8> = (0..2000u32).map(|n| (n % 251) as u8).collect();
            let (window, mut at, mut got) = (Window::new(1 << 20), 0usize, Vec::new());
            for (length, back) in cuts {
                let from = at.saturating_sub(back);
                let to = (from + length).min(sent.len());
                let taken = window.offer(from as u64, Bytes::copy_from_slice(&sent[from..to])).await;
                prop_assert_eq!(taken, Ok(true));
                at = at.max(to);
                prop_assert_eq!(window.span().1, at as u64);
            }
            prop_assert_eq!(window.offer(at as u64 + 1, Bytes::from_static(b"x")).await, Ok(false), "a hole");
            window.finish();
            while let Some(chunk) = window.take_blocking() {
                got.extend_from_slice(&chunk);
            }
            prop_assert_eq!(&got[..], &sent[..at]);
            Ok(())
        })?;
    }

    /// Any frames at all: an error or a tree below the destination, and nothing beside it.
    #[test]
    fn whatever_comes_stays_below(
        entries in proptest::collection::vec(
            ("[a-c./]{0,6}", 0i32..8, "[a-c./]{0,8}", proptest::option::of("[xy]{0,4}")), 0..8),
    ) {
        let here = Here::new();
        here.file("outside/secret", "secret");
        let mut all = vec![root()];
        for (path, kind, target, content) in entries {
            let kind = FileKind::try_from(kind).unwrap_or_default();
            all.push(entry(path.as_bytes(), kind, target.as_bytes()));
            if kind == FileKind::File {
                all.extend(content.map(|text| Frame::Data(text.into())));
                all.push(Frame::Close);
            }
        }
        let mut to = writer(&here.at("dst"), "", UploadPlacement::Copy);
        let _ = to.take(frames(&all));
        drop(to);
        here.is_clean();
        let names: Vec<_> = fs::read_dir(here.dir.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
        prop_assert!(names.iter().all(|name| name == "dst" || name == "outside"), "{:?}", names);
        prop_assert_eq!(fs::read_dir(here.at("outside")).unwrap().count(), 1);
        prop_assert_eq!(fs::read(here.at("outside/secret")).unwrap(), b"secret");
    }
}
