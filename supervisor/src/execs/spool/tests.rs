//! The spool against a model that keeps everything, and its promises one by one.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::execs::spawn::fake::{pattern, pattern_bytes};

struct Shelf {
    spool: Spool,
    disk: Arc<Disk>,
    _dir: tempfile::TempDir,
    token: CancellationToken,
}

fn shelf(per_exec: u64, total: u64, block: bool) -> Shelf {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::new(dir.path(), total));
    disk.prepare().unwrap();
    let token = CancellationToken::new();
    let spool = another(&disk, per_exec, block, &token);
    Shelf { spool, disk, _dir: dir, token }
}

fn another(disk: &Arc<Disk>, per_exec: u64, block: bool, token: &CancellationToken) -> Spool {
    let tracker = TaskTracker::new();
    Spool::new(ExecId::random(), Arc::clone(disk), per_exec, block, &tracker, token.clone())
}

/// Writes `length` bytes of the pattern as a pump does.
async fn write(spool: &Spool, stream: Stream, length: u64) {
    let [(_, begin), ..] = [spool.sizes()[stream as usize]];
    let mut at = begin;
    while at < begin + length {
        let room = spool.room(stream).await;
        let n = room.min((begin + length - at) as usize);
        spool.append(stream, pattern_bytes(at, n));
        at += n as u64;
    }
}

/// Reads to the end; every byte must be the pattern's. Gives the gaps and how much was read.
async fn read_all(spool: &Spool, stream: Stream) -> (Vec<(u64, u64)>, u64) {
    let (mut at, mut gaps, mut read) = (0, Vec::new(), 0);
    loop {
        match spool.read(stream, at, 100_000).await {
            Piece::Data(data) => {
                assert!(data.iter().enumerate().all(|(i, byte)| *byte == pattern(at + i as u64)), "at {at}");
                at += data.len() as u64;
                read += data.len() as u64;
            }
            Piece::Gap { to } => {
                gaps.push((at, to));
                at = to;
            }
            Piece::End => return (gaps, read),
        }
    }
}

#[tokio::test]
async fn what_exceeds_memory_is_read_from_disk() {
    let shelf = shelf(8 << 20, 64 << 20, false);
    write(&shelf.spool, Stream::Stdout, 3_000_000).await;
    write(&shelf.spool, Stream::Stderr, 500).await;
    assert_eq!(read_all(&shelf.spool, Stream::Stdout).await, (vec![], 3_000_000));
    assert_eq!(read_all(&shelf.spool, Stream::Stderr).await, (vec![], 500));
    assert_eq!(shelf.disk.used(), 3_000_500);
}

#[tokio::test]
async fn a_disk_that_hangs_stops_no_command() {
    for block in [false, true] {
        let shelf = shelf(8 << 20, 64 << 20, block);
        let dir = shelf._dir.path().join("execs").join(shelf.spool.inner.exec.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        // To open a pipe for writing takes until somebody reads it.
        let segment = dir.join(format!("out-{:020}", 0));
        rustix::fs::mknodat(rustix::fs::CWD, &segment, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let reader = shelf.spool.attach([0, 0]);
        let reading = async {
            let (mut at, mut readable) = (0, shelf.spool.readable());
            loop {
                readable.borrow_and_update();
                match shelf.spool.read(Stream::Stdout, at, 100_000).await {
                    Piece::Data(data) => at += data.len() as u64,
                    Piece::Gap { to } => at = to,
                    Piece::End => readable.changed().await.unwrap(),
                }
                reader.ack([at, 0]);
            }
        };
        let written = tokio::time::timeout(Duration::from_secs(60), async {
            tokio::select! {
                () = write(&shelf.spool, Stream::Stdout, 2_000_000) => {}
                never = reading => never,
            }
        });
        assert!(written.await.is_ok(), "it stands still, block {block}");
        assert!(shelf.disk.error().unwrap().contains("not done within"));
        // The thread's way out.
        use std::os::unix::fs::OpenOptionsExt as _;
        let open = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&segment);
        drop((open, shelf));
    }
}

#[tokio::test]
async fn drop_oldest_keeps_the_newest_within_the_bound() {
    let shelf = shelf(1 << 20, 64 << 20, false);
    write(&shelf.spool, Stream::Stdout, 10_000_000).await;
    let (gaps, read) = read_all(&shelf.spool, Stream::Stdout).await;
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0], (0, 10_000_000 - read));
    assert!(shelf.disk.used() <= 1 << 20 && read > 900_000, "{read}");
}

#[tokio::test(start_paused = true)]
async fn block_waits_for_every_attached_reader() {
    let shelf = shelf(1 << 20, 64 << 20, true);
    let (slow, fast) = (shelf.spool.attach([0, 0]), shelf.spool.attach([0, 0]));
    write(&shelf.spool, Stream::Stdout, 1 << 20).await;
    fast.ack([1 << 20, 0]);
    let hours = Duration::from_secs(3600);
    let more = tokio::time::timeout(hours, shelf.spool.room(Stream::Stdout)).await;
    assert!(more.is_err(), "the slow reader still needs all of it");
    slow.ack([500_000, 0]);
    shelf.spool.room(Stream::Stdout).await;
    assert!(matches!(shelf.spool.read(Stream::Stdout, 500_000, 1).await, Piece::Data(_)));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_comes_back_makes_it_block_again() {
    let shelf = shelf(1 << 20, 64 << 20, true);
    write(&shelf.spool, Stream::Stdout, 1 << 20).await;
    let begun = Instant::now();
    shelf.spool.room(Stream::Stdout).await;
    assert!(begun.elapsed() >= holdfast_wire::timing::BLOCKED_WITHOUT_READER);
    write(&shelf.spool, Stream::Stdout, 3 << 20).await;
    let _reader = shelf.spool.attach([0, 0]);
    let full = async {
        loop {
            write(&shelf.spool, Stream::Stdout, 1000).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(3600), full).await.is_err());
}

#[tokio::test]
async fn the_output_of_ended_execs_goes_before_a_running_one_waits() {
    let shelf = shelf(1 << 20, 2 << 20, true);
    let (old, older_read) = (
        another(&shelf.disk, 1 << 20, true, &shelf.token),
        another(&shelf.disk, 1 << 20, true, &shelf.token),
    );
    for ended in [&older_read, &old] {
        write(ended, Stream::Stdout, 1_000_000).await;
        ended.close();
        ended.retire();
    }
    // Somebody reads the older one: it stays.
    let _reader = older_read.attach([0, 0]);
    write(&shelf.spool, Stream::Stdout, 1_000_000).await;
    assert_eq!(read_all(&shelf.spool, Stream::Stdout).await.1, 1_000_000);
    assert_eq!(read_all(&older_read, Stream::Stdout).await.1, 1_000_000);
    assert_eq!(read_all(&old, Stream::Stdout).await, (vec![(0, 1_000_000)], 0));
}

#[tokio::test]
async fn everybody_may_keep_a_little_when_others_have_it_all() {
    let shelf = shelf(1 << 20, 1 << 20, true);
    write(&shelf.spool, Stream::Stdout, 1 << 20).await;
    let poor = another(&shelf.disk, 1 << 20, true, &shelf.token);
    write(&poor, Stream::Stderr, FLOOR).await;
    assert_eq!(read_all(&poor, Stream::Stderr).await, (vec![], FLOOR));
}

#[tokio::test]
async fn the_drain_takes_what_the_pipe_held_beyond_the_bound() {
    let shelf = shelf(1 << 20, 64 << 20, true);
    write(&shelf.spool, Stream::Stdout, 1 << 20).await;
    shelf.spool.drain();
    write(&shelf.spool, Stream::Stdout, 65_536).await;
    assert_eq!(read_all(&shelf.spool, Stream::Stdout).await, (vec![], (1 << 20) + 65_536));
}

#[tokio::test]
async fn a_closed_spool_is_on_disk_with_its_record() {
    let shelf = shelf(8 << 20, 64 << 20, true);
    write(&shelf.spool, Stream::Stdout, 777_777).await;
    shelf.spool.close();
    let exec = shelf.spool.inner.exec;
    let info = holdfast_wire::api::ExecInfo { stdout_bytes: 777_777, ..Default::default() };
    let revision = shelf.spool.save(Record { exec, info, retain_for_ms: 1, process: None }, true);
    assert!(shelf.spool.saved(revision).await);
    let again = Arc::new(Disk::new(shelf._dir.path(), 64 << 20));
    let [recovered] = recover(&again).try_into().unwrap();
    assert_eq!(read_all(&recovered.spool, Stream::Stdout).await, (vec![], 777_777));
    assert_eq!(again.used(), 777_777);
}

#[tokio::test]
async fn a_lost_segment_is_told_as_a_gap() {
    let shelf = shelf(1 << 20, 64 << 20, false);
    write(&shelf.spool, Stream::Stdout, 400_000).await;
    shelf.spool.close();
    let exec = shelf.spool.inner.exec;
    let record = Record { exec, info: Default::default(), retain_for_ms: 1, process: None };
    assert!(shelf.spool.saved(shelf.spool.save(record, true)).await);
    let dir = shelf._dir.path().join("execs").join(exec.to_string());
    let first = dir.join("out-00000000000000000000");
    let length = std::fs::metadata(&first).unwrap().len();
    std::fs::remove_file(first).unwrap();
    let (gaps, read) = read_all(&shelf.spool, Stream::Stdout).await;
    assert_eq!(gaps.iter().map(|(from, to)| to - from).sum::<u64>(), length);
    assert_eq!(read, 400_000 - length);
}

/// One thing that happens to a log.
#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Spill,
    SpillSlowly,
    DropOldest,
    DropBefore(u64),
    Read(u64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..3000).prop_map(Step::Append),
        2 => Just(Step::Spill),
        1 => Just(Step::SpillSlowly),
        1 => Just(Step::DropOldest),
        1 => (0_u64..40_000).prop_map(Step::DropBefore),
        4 => ((0_u64..40_000), (1_usize..5000)).prop_map(|(at, n)| Step::Read(at, n)),
    ]
}

proptest! {
    #[test]
    fn a_log_gives_back_what_it_was_given_or_says_that_it_is_gone(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut log = log::Log::default();
        // The files, by the offset that names them.
        let mut files = std::collections::HashMap::<u64, Vec<u8>>::new();
        let mut under_way: Option<log::Spill> = None;
        let put = |files: &mut std::collections::HashMap<u64, Vec<u8>>, spill: &log::Spill| {
            let file = files.entry(spill.segment.from).or_default();
            file.truncate((spill.at - spill.segment.from) as usize);
            file.extend(spill.chunks.iter().flatten());
        };
        for step in steps {
            match step {
                Step::Append(n) => log.append(pattern_bytes(log.end(), n)),
                Step::Spill => if under_way.is_none() && let Some(spill) = log.spill(500, 6000) {
                    put(&mut files, &spill);
                    prop_assert!(log.spilled(&spill));
                },
                // Begun now, finished at the next one: in between anything may be dropped.
                Step::SpillSlowly => match under_way.take() {
                    None => under_way = log.spill(500, 6000),
                    Some(spill) => {
                        put(&mut files, &spill);
                        log.spilled(&spill);
                    }
                },
                Step::DropOldest => { log.drop_oldest(); }
                Step::DropBefore(offset) => while let Some(dropped) = log.drop_before(offset) {
                    prop_assert!(dropped.bytes > 0);
                    prop_assert!(log.begin() <= offset);
                },
                Step::Read(at, n) => match log.find(at, n) {
                    Place::Memory(data) => {
                        prop_assert!(!data.is_empty() && data.len() <= n);
                        prop_assert_eq!(data.clone(), pattern_bytes(at, data.len()));
                    }
                    Place::Disk { segment, skip, length } => {
                        prop_assert!(length > 0 && length <= n);
                        let file = &files[&segment.from];
                        let bytes = &file[skip as usize..skip as usize + length];
                        prop_assert_eq!(bytes, &pattern_bytes(at, length)[..]);
                    }
                    Place::Gap { to } => prop_assert!(to > at && at < log.begin() && to == log.begin()),
                    Place::End => prop_assert!(at >= log.end()),
                },
            }
            prop_assert_eq!(log.kept(), log.end() - log.begin());
        }
    }

}

proptest! {
    // Each case writes a few megabytes to real files.
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The whole spool, with its writer and real files, a reader that acknowledges as it likes, and both policies.
    #[test]
    fn a_reader_gets_every_byte_once_in_order_or_is_told_of_the_gap(
        block in any::<bool>(),
        writes in proptest::collection::vec((any::<bool>(), 1_u64..400_000), 1..12),
        ack_every in 1_u64..300_000,
        patience in 1000_usize..200_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let shelf = shelf(1 << 20, 8 << 20, block);
            let reader = shelf.spool.attach([0, 0]);
            let written = AtomicU64::new(0);
            let done = CancellationToken::new();
            let writer = async {
                for (stderr, length) in &writes {
                    let stream = if *stderr { Stream::Stderr } else { Stream::Stdout };
                    write(&shelf.spool, stream, *length).await;
                    written.fetch_add(*length, Ordering::Relaxed);
                }
                shelf.spool.close();
                done.cancel();
            };
            let reading = async {
                let (mut cursors, mut gone, mut acknowledged) = ([0_u64; 2], 0, 0);
                let mut readable = shelf.spool.readable();
                loop {
                    let over = done.is_cancelled();
                    readable.borrow_and_update();
                    let mut nothing = true;
                    for stream in Stream::BOTH {
                        let cursor = &mut cursors[stream as usize];
                        match shelf.spool.read(stream, *cursor, patience).await {
                            Piece::Data(data) => {
                                assert_eq!(data, pattern_bytes(*cursor, data.len()));
                                *cursor += data.len() as u64;
                            }
                            Piece::Gap { to } => {
                                gone += to - *cursor;
                                *cursor = to;
                            }
                            Piece::End => continue,
                        }
                        nothing = false;
                    }
                    let total = cursors[0] + cursors[1];
                    if total - acknowledged >= ack_every || (nothing && total > acknowledged) {
                        acknowledged = total;
                        reader.ack(cursors);
                    }
                    if nothing && over {
                        return (total, gone);
                    }
                    if nothing {
                        tokio::select! {
                            _ = readable.changed() => {}
                            () = done.cancelled() => {}
                        }
                    }
                }
            };
            let ((), (total, gone)) = tokio::join!(writer, reading);
            assert_eq!(total, written.load(Ordering::Relaxed));
            assert!(!block || gone == 0, "{gone} bytes are gone under `block`");
        });
    }
}
