//! The authority and bundles on disk: modes, crashes, damage, and several processes at once.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use common::{HOUR, Installation, some_sandbox};
use holdfast_certs::{
    AlternativeName, BundleFiles, CertificateAuthority, CertificateBundle, Error, Identity, KeyAndCsr,
    TrustDomain,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

fn open(dir: &Path) -> Result<CertificateAuthority, Error> {
    CertificateAuthority::open_or_create(dir, TrustDomain::default())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The error's text, which must name the file and say each of `words`.
fn complaint<T>(result: Result<T, Error>, words: &[&str]) -> Error {
    let error = result.err().expect("it is refused");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    error
}

#[test]
fn the_authority_is_made_once_and_found_again() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data/ca");
    let first = open(&dir).unwrap();
    let second = open(&dir).unwrap();
    assert_eq!(first.anchors().pem(), second.anchors().pem());

    // What the first signed, the second's anchors verify.
    let issued = first.issue(&some_sandbox(), HOUR, &[]).unwrap();
    issued.into_bundle(second.anchors()).unwrap();

    let ten_years = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    let left = first.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(left > ten_years - HOUR && left <= ten_years);
}

#[test]
fn the_key_is_for_its_owner_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ca");
    open(&dir).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("ca-key.pem")), 0o600);
    assert_eq!(mode(&dir.join("ca.pem")), 0o644);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).unwrap();
    let key = root.path().join("ca-key.pem");
    for mode in [0o640, 0o604, 0o660, 0o644] {
        set_mode(&key, mode);
        complaint(open(root.path()), &["ca-key.pem", &format!("{mode:04o}"), "chmod 0600"]);
    }
    set_mode(&key, 0o400);
    open(root.path()).unwrap();
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let root = tempfile::tempdir().unwrap();
    set_mode(root.path(), 0o777);
    complaint(open(root.path()), &[&root.path().display().to_string(), "0777", "chmod 0700"]);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing is left in such a directory");
}

#[test]
fn many_starting_at_once_make_one_authority() {
    const STARTERS: usize = 8;
    for _ in 0..10 {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("ca");
        let together = Barrier::new(STARTERS);
        let mut certificates: Vec<String> = std::thread::scope(|scope| {
            let start = || {
                together.wait();
                open(&dir).unwrap().anchors().pem().to_owned()
            };
            let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(start)).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        certificates.dedup();
        assert_eq!(certificates.len(), 1);
        assert_eq!(certificates[0], fs::read_to_string(dir.join("ca.pem")).unwrap());
    }
}

#[test]
fn a_start_that_was_cut_short_after_the_key_is_taken_up_again() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).unwrap();
    let key = fs::read(root.path().join("ca-key.pem")).unwrap();
    fs::remove_file(root.path().join("ca.pem")).unwrap();
    let leftover = root.path().join(".ca.pem.0123.unfinished");
    fs::write(&leftover, "-----BEGIN CERTIF").unwrap();

    let again = open(root.path()).unwrap();
    assert_eq!(fs::read(root.path().join("ca-key.pem")).unwrap(), key);
    assert!(!leftover.exists());
    again
        .issue(&some_sandbox(), HOUR, &[])
        .unwrap()
        .into_bundle(open(root.path()).unwrap().anchors())
        .unwrap();
}

#[test]
fn an_authority_without_its_key_is_not_replaced_silently() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).unwrap();
    let certificate = fs::read(root.path().join("ca.pem")).unwrap();
    fs::remove_file(root.path().join("ca-key.pem")).unwrap();
    let error = complaint(open(root.path()), &["ca.pem", "ca-key.pem", "backup"]);
    assert!(matches!(error, Error::AuthorityKeyMissing { .. }));
    assert_eq!(fs::read(root.path().join("ca.pem")).unwrap(), certificate);
}

#[test]
fn another_trust_domain_is_not_this_authoritys() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).unwrap();
    let other = CertificateAuthority::open_or_create(root.path(), "acme.example".parse().unwrap());
    complaint(other, &["ca.pem", "holdfast.internal", "acme.example"]);
}

#[test]
fn damage_to_the_authority_is_named() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).unwrap();
    let key_path = root.path().join("ca-key.pem");
    let certificate_path = root.path().join("ca.pem");
    let key = fs::read_to_string(&key_path).unwrap();
    let certificate = fs::read_to_string(&certificate_path).unwrap();

    for cut in [0, 10, key.len() / 2, key.len() - 20] {
        fs::write(&key_path, &key[..cut]).unwrap();
        complaint(open(root.path()), &["ca-key.pem", "private key"]);
    }
    // A whole key that is not the certificate's.
    let stranger = tempfile::tempdir().unwrap();
    open(stranger.path()).unwrap();
    fs::write(&key_path, fs::read(stranger.path().join("ca-key.pem")).unwrap()).unwrap();
    let error = complaint(open(root.path()), &["ca-key.pem", "ca.pem"]);
    assert!(matches!(error, Error::KeyMismatch { .. }));
    fs::write(&key_path, &key).unwrap();

    for (text, word) in [
        (&certificate[..certificate.len() / 2], "PEM"),
        ("", "no CERTIFICATE section"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not X.509"),
        (&key, "no CERTIFICATE section"),
    ] {
        fs::write(&certificate_path, text).unwrap();
        complaint(open(root.path()), &["ca.pem", word]);
    }
    fs::write(&certificate_path, "x".repeat(70_000)).unwrap();
    complaint(open(root.path()), &["ca.pem", "larger than"]);
    fs::write(&certificate_path, [0xff, 0xfe]).unwrap();
    complaint(open(root.path()), &["ca.pem", "not text"]);
    fs::write(&certificate_path, &certificate).unwrap();
    open(root.path()).unwrap();
}

#[test]
fn a_leaf_is_not_taken_for_an_authority() {
    let installation = Installation::new();
    let dir = installation.directory.path().join("ca");
    let leaf = installation.authority.issue(&Identity::gateway("gw").unwrap(), HOUR, &[]).unwrap();
    fs::write(dir.join("ca.pem"), &leaf.cert_chain_pem).unwrap();
    complaint(open(&dir), &["ca.pem", "not an authority's"]);
}

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let installation = Installation::new();
    let bundle = installation.bundle(&some_sandbox());
    let dir = installation.directory.path().join("identity");
    let files = BundleFiles::within(&dir);
    files.write(&bundle).unwrap();

    for file in [&files.certificate, &files.key, &files.ca] {
        assert_eq!(mode(file), 0o400, "{}", file.display());
    }
    assert_eq!(mode(&dir), 0o700);
    let read = files.load().unwrap();
    assert_eq!(read.facts(), bundle.facts());
    assert_eq!(read.key().expose(), bundle.key().expose());
    assert_eq!(read.anchors().pem(), bundle.anchors().pem());
}

#[test]
fn a_bundle_is_replaced_by_its_renewal() {
    let installation = Installation::new();
    let sandbox = some_sandbox();
    let files = BundleFiles::within(&installation.directory.path().join("identity"));
    for _ in 0..3 {
        let bundle = installation.bundle(&sandbox);
        files.write(&bundle).unwrap();
        assert_eq!(files.load().unwrap().facts(), bundle.facts());
    }
    let names: Vec<_> =
        fs::read_dir(files.key.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "three files and the lock: {names:?}");
}

/// A write is: ca, key.next, certificate, rename. Each prefix of it is a crash.
#[test]
fn a_crash_between_any_two_steps_of_a_write_leaves_a_bundle() {
    let installation = Installation::new();
    let sandbox = some_sandbox();
    let old = installation.bundle(&sandbox);
    let new = installation.bundle(&sandbox);
    let next_key = |files: &BundleFiles| files.key.with_file_name("key.pem.next");
    let place = |path: &Path, text: &str| {
        // As the writer does: a new file over the old one.
        let new = path.with_extension("placed");
        fs::write(&new, text).unwrap();
        set_mode(&new, 0o400);
        fs::rename(new, path).unwrap();
    };

    for after in 0..=3 {
        let dir = installation.directory.path().join(format!("crash-{after}"));
        let files = BundleFiles::within(&dir);
        files.write(&old).unwrap();
        if after >= 1 {
            place(&next_key(&files), new.key().expose());
        }
        if after >= 2 {
            place(&files.certificate, new.chain_pem());
        }
        if after >= 3 {
            fs::rename(next_key(&files), &files.key).unwrap();
        }
        let expected = if after >= 2 { &new } else { &old };
        assert_eq!(files.load().unwrap().facts(), expected.facts(), "after step {after}");
        // And the next write gets through.
        let third = installation.bundle(&sandbox);
        files.write(&third).unwrap();
        assert_eq!(files.load().unwrap().facts(), third.facts());
    }

    // The first write of all, cut short before the rename.
    let files = BundleFiles::within(&installation.directory.path().join("first"));
    files.write(&old).unwrap();
    fs::rename(&files.key, next_key(&files)).unwrap();
    assert_eq!(files.load().unwrap().facts(), old.facts());
}

#[test]
fn a_reader_never_sees_half_a_renewal() {
    const RENEWALS: usize = 40;
    let installation = Installation::new();
    let sandbox = some_sandbox();
    let files = BundleFiles::within(&installation.directory.path().join("identity"));
    files.write(&installation.bundle(&sandbox)).unwrap();
    let reads = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                files.load().unwrap();
                reads.fetch_add(1, Ordering::AcqRel);
            }
        });
        for _ in 0..RENEWALS {
            let bundle = installation.bundle(&sandbox);
            // Renewals are hours apart: a reader that began before the last one has long ended.
            let before = reads.load(Ordering::Acquire);
            while reads.load(Ordering::Acquire) < before + 2 && !reader.is_finished() {
                std::thread::yield_now();
            }
            files.write(&bundle).unwrap();
        }
        done.store(true, Ordering::Release);
        reader.join().unwrap();
    });
    assert!(reads.into_inner() > RENEWALS);
}

#[test]
fn what_is_wrong_with_a_bundle_is_named() {
    let installation = Installation::new();
    let other = Installation::new();
    let bundle = installation.bundle(&some_sandbox());
    let dir = installation.directory.path().join("identity");
    let files = BundleFiles::within(&dir);
    let set = |path: &Path, text: &str| {
        set_mode(path, 0o600);
        fs::write(path, text).unwrap();
    };
    complaint(files.load(), &["ca.pem", "open"]);

    files.write(&bundle).unwrap();
    set(&files.key, other.bundle(&some_sandbox()).key().expose());
    complaint(files.load(), &["cert.pem", "key.pem", "not made for"]);

    files.write(&bundle).unwrap();
    set(&files.ca, other.anchors().pem());
    complaint(files.load(), &["cert.pem", "ca.pem", "not signed"]);

    files.write(&bundle).unwrap();
    set(&files.certificate, &format!("{}{}", bundle.chain_pem(), bundle.chain_pem()));
    complaint(files.load(), &["cert.pem", "more certificates"]);

    files.write(&bundle).unwrap();
    let key = bundle.key().expose();
    set(&files.key, &key[..key.len() / 2]);
    let error = complaint(files.load(), &["key.pem", "private key"]);
    assert!(!error.to_string().contains(&key[40..60]), "an error never quotes a key");

    files.write(&bundle).unwrap();
    set_mode(&files.key, 0o444);
    complaint(files.load(), &["key.pem", "0444"]);
    // A Secret mounted for a user that is not root.
    set_mode(&files.key, 0o440);
    files.load().unwrap();
    fs::remove_file(&files.key).unwrap();
    complaint(files.load(), &["open", "key.pem"]);
}

#[test]
fn anchors_of_two_trust_domains_do_not_mix() {
    let one = Installation::new();
    let two = Installation::of("acme.example".parse().unwrap());
    let mixed = format!("{}{}", one.anchors().pem(), two.anchors().pem());
    complaint(holdfast_certs::TrustAnchors::from_pem(&mixed, "both.pem"), &["both.pem", "acme.example"]);

    // Two authorities of one domain, as while the old one is being replaced, are fine: both are trusted.
    let next = Installation::new();
    let both = format!("{}{}", one.anchors().pem(), next.anchors().pem());
    let both = holdfast_certs::TrustAnchors::from_pem(&both, "both.pem").unwrap();
    one.authority.issue(&some_sandbox(), HOUR, &[]).unwrap().into_bundle(&both).unwrap();
    next.authority.issue(&some_sandbox(), HOUR, &[]).unwrap().into_bundle(&both).unwrap();
}

#[test]
fn a_gateway_carries_its_names_and_nobody_else_does() {
    let installation = Installation::new();
    let names: Vec<AlternativeName> =
        ["10.1.2.3", "2001:db8::1", "gw.example.com"].iter().map(|name| name.parse().unwrap()).collect();
    let gateway = Identity::gateway("gw-1").unwrap();
    let issued = installation.authority.issue(&gateway, HOUR, &names).unwrap();
    let pem = x509_parser::pem::parse_x509_pem(issued.cert_chain_pem.as_bytes()).unwrap().1;
    let x509 = X509Certificate::from_der(&pem.contents).unwrap().1;
    let found = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
    for wanted in [
        GeneralName::URI("spiffe://holdfast.internal/gateway/gw-1"),
        GeneralName::DNSName("gateway.holdfast.internal"),
        GeneralName::DNSName("gw.example.com"),
        GeneralName::IPAddress(&[10, 1, 2, 3]),
    ] {
        assert!(found.contains(&wanted), "{wanted:?} is not among {found:?}");
    }
    assert_eq!(found.len(), 5);
    let purposes = x509.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);

    let refused = installation.authority.issue(&some_sandbox(), HOUR, &names);
    complaint(refused, &["sandbox/", "only a gateway"]);
    complaint("not a name".parse::<AlternativeName>(), &["not a name", "neither"]);
}

#[test]
fn nothing_outlives_the_authority() {
    let installation = Installation::new();
    let forever = installation.authority.issue(&some_sandbox(), Duration::MAX, &[]).unwrap();
    assert_eq!(forever.facts.not_after, installation.authority.not_after());
    let later = installation.authority.not_after();
    complaint(installation.authority.issue_at(later, &some_sandbox(), HOUR, &[]), &["run out"]);
    complaint(installation.authority.issue(&some_sandbox(), Duration::ZERO, &[]), &["below one second"]);
}

#[test]
fn two_certificates_for_one_key_have_two_serials() {
    let installation = Installation::new();
    let sandbox = some_sandbox();
    let request = KeyAndCsr::generate().unwrap();
    let again = KeyAndCsr::with_key(request.private_key_pem.clone()).unwrap();
    let first = installation.authority.sign_csr(&request.csr_der, &sandbox, HOUR).unwrap();
    let second = installation.authority.sign_csr(&again.csr_der, &sandbox, HOUR).unwrap();
    assert_ne!(first.facts.serial, second.facts.serial);
    assert_ne!(first.facts.fingerprint, second.facts.fingerprint);
}

#[test]
fn debug_output_never_shows_a_key() {
    let installation = Installation::new();
    let issued = installation.authority.issue(&some_sandbox(), HOUR, &[]).unwrap();
    let request = KeyAndCsr::generate().unwrap();
    let keys = [issued.private_key_pem.clone(), request.private_key_pem.clone()];
    let authority_key = fs::read_to_string(installation.directory.path().join("ca/ca-key.pem")).unwrap();
    let bundle: CertificateBundle = issued.clone().into_bundle(installation.anchors()).unwrap();
    let live = holdfast_certs::tls::LiveIdentity::new(&bundle);
    let shown = format!("{issued:?} {request:?} {bundle:?} {live:?} {:?}", installation.authority);
    let shown =
        shown + &format!("{issued:#?} {request:#?} {bundle:#?} {live:#?} {:#?}", installation.authority);
    for key in keys.iter().map(|key| key.expose()).chain([authority_key.as_str()]) {
        for line in key.lines().filter(|line| !line.starts_with("-----")) {
            assert!(!shown.contains(line));
        }
    }
    assert!(shown.contains("redacted") && !shown.contains("PRIVATE KEY"));
}
