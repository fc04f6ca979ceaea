//! Wrong requests: a clear error each, and the gateway goes on.

use std::os::unix::ffi::OsStrExt;

use holdfast_tests::harness::Cluster;

use super::HOLDFAST;

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    for (args, code, said) in [
        (vec!["exec", "nobox", "--", "true"], 125, "nobox"),
        (vec!["create", "Not_A_Name"], 125, "name"),
        (vec!["create", "box"], 125, "box"),
        (vec!["exec", "-w", "/no/such/dir", "box", "--", "true"], 126, "/no/such/dir"),
        (vec!["exec", "-u", "no-such-user", "box", "--", "true"], 126, "no-such-user"),
        (vec!["exec", "box", "--"], 2, "COMMAND"),
        (vec!["exec", "-e", "=x", "box", "--", "true"], 2, "="),
        (vec!["attach", "box", "not-a-uuid"], 125, "not-a-uuid"),
        (vec!["wait", "box", "--for", "nonsense"], 2, "nonsense"),
    ] {
        let finished = cluster.command(&args).run().await?;
        assert_eq!(finished.code, code, "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{args:?} said: {}", finished.stderr);
    }
    cluster.command(["exec", "box", "--", "true"]).run().await?.success()?;
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_survive_and_nul_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    let value = std::ffi::OsStr::from_bytes(b"A=\xff\xfe");
    let args = [
        "exec".as_ref(),
        "-e".as_ref(),
        value,
        "box".as_ref(),
        "--".as_ref(),
        "printenv".as_ref(),
        "A".as_ref(),
    ];
    let finished = cluster.command(args).run().await?.success()?;
    assert_eq!(finished.stdout, b"\xff\xfe\n");
    Ok(())
}

#[tokio::test]
async fn ten_mebibytes_of_arguments_are_refused_with_their_size() -> anyhow::Result<()> {
    let cluster = Cluster::start(HOLDFAST).await?;
    cluster.create("box").await?;
    // One process cannot be given so much (execve's bound is 2 MiB), so the client library sends it.
    let error = holdfast_tests::harness::start_argv(&cluster, vec![vec![b'x'; 100_000]; 105]).await?;
    assert!(error.contains("argv") && error.contains("bytes"), "{error}");
    cluster.command(["exec", "box", "--", "true"]).run().await?.success()?;
    Ok(())
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() -> anyhow::Result<()> {
    let (mine, other) = tokio::try_join!(Cluster::start(HOLDFAST), Cluster::start(HOLDFAST))?;
    // The other's identity against my address: its authority is not mine.
    let profile = std::fs::read_to_string(other.data_dir().join("client.toml"))?;
    let address =
        |cluster: &Cluster| -> anyhow::Result<String> { Ok(cluster.gateway()?.address.to_string()) };
    let crossed = profile.replace(&address(&other)?, &address(&mine)?);
    let path = other.data_dir().join("crossed.toml");
    std::fs::write(&path, crossed)?;
    let finished = mine.command(["list"]).env("HOLDFAST_PROFILE", &path).run().await?;
    assert_eq!(finished.code, 125, "{}", finished.stderr);
    assert!(finished.stderr.to_lowercase().contains("certificate"), "{}", finished.stderr);
    mine.command(["list"]).run().await?.success()?;
    Ok(())
}
