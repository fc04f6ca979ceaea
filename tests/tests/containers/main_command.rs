//! An image's own command: ENTRYPOINT, CMD, USER, WORKDIR and ENV, run once in each workload.

use holdfast_tests::engines::{EMPTY, Kind, SCRATCH};

use crate::{
    site::{SOON, Site},
    with_both_engines,
};

with_both_engines!(
    an_images_own_command_runs_once_in_each_workload_and_outlives_its_gateway,
    arguments_take_the_place_of_cmd_and_what_cannot_run_is_named,
);

const APP: &str = "localhost/hf-app:1";

/// Says who it is, notes in the workspace that it ran, and talks for a while if that is what it is called for.
const ENTRY: &str = "#!/busybox sh
echo run >>/workspace/runs
echo \"$0 $*; $(/busybox id -u):$(/busybox id -g) in $(pwd), $COLOUR\"
case $2 in
talk) for i in 1 2 3 4 5 6; do echo $i; /busybox sleep 1; done; exit 9 ;;
serve) exec /busybox sleep 1000 ;;
*) exit 3 ;;
esac
";

const CONFIG: &[&str] = &[
    "ENTRYPOINT [\"/app/entry\", \"--\"]",
    "CMD [\"talk\"]",
    "USER 1234:567",
    "WORKDIR /app",
    "ENV COLOUR=green",
];

async fn an_images_own_command_runs_once_in_each_workload_and_outlives_its_gateway(
    kind: Kind,
) -> anyhow::Result<()> {
    let mut site = Site::start(kind).await?;
    site.engine.make_app(APP, ENTRY, CONFIG).await?;
    site.create("box", APP, &["--main"]).await?;
    let mut attached = site.cluster.command(["attach", "box", "main"]).spawn()?;
    assert_eq!(attached.line().await?, "/app/entry -- talk; 1234:567 in /app, green");
    assert_eq!(attached.line().await?, "1");
    let first = site.get("box").await?;
    assert_eq!(first["main"]["args"], serde_json::json!([]), "{first}");
    let running = condition(&first)?;
    assert_eq!((running.0.as_str(), running.1.as_str()), ("True", "Running"), "{first}");

    // It runs on, and whoever is attached gets all of it.
    site.cluster.kill_gateway().await?;
    site.cluster.start_gateway().await?;
    let finished = attached.finish().await?.exited(9)?;
    assert_eq!(finished.text(), "2\n3\n4\n5\n6\n");
    site.cluster.wait_for("box", "condition=MainCommand=False", "50s").await?;
    let ended = site.get("box").await?;
    assert_eq!(condition(&ended)?, ("False".into(), "Exited".into(), "exit code 9".into()));
    assert_eq!(ended["phase"], "Ready", "its end is not the sandbox's");

    // A gateway that finds it ended leaves it so.
    site.cluster.kill_gateway().await?;
    site.cluster.start_gateway().await?;
    site.run(&["wait", "box", "--timeout", "50s"]).await?.success()?;
    site.cluster.wait_for("box", "condition=MainCommand=False", "50s").await?;
    assert_eq!(runs(&site).await?, 1);

    // A started sandbox has a new workload, which runs it again: another exec.
    site.run(&["stop", "box"]).await?.success()?;
    site.phase("box", "Stopped", SOON).await?;
    site.run(&["start", "box"]).await?.success()?;
    site.run(&["wait", "box", "--timeout", "50s"]).await?.success()?;
    site.run(&["wait", "box", "--exec", "main"]).await?.exited(9)?;
    let second = site.get("box").await?;
    assert_ne!(first["main"]["exec_id"], second["main"]["exec_id"]);
    let told = site.text(&["logs", "box", "main"]).await?;
    assert_eq!(told, "/app/entry -- talk; 1234:567 in /app, green\n1\n2\n3\n4\n5\n6\n");
    assert_eq!(runs(&site).await?, 2);
    let execs = site.run(&["execs", "box", "-o", "json"]).await?.success()?.json()?.to_string();
    for sandbox in [&first, &second] {
        assert!(execs.contains(sandbox["main"]["exec_id"].as_str().unwrap_or("?")), "{execs}");
    }
    Ok(())
}

async fn arguments_take_the_place_of_cmd_and_what_cannot_run_is_named(kind: Kind) -> anyhow::Result<()> {
    let site = Site::start(kind).await?;
    site.engine.make_app(APP, ENTRY, CONFIG).await?;
    // Somebody else than the image says, and with a variable of one's own.
    let other = ["--user", "77", "-e", "COLOUR=blue", "--main", "--", "quickly now"];
    site.create("other", APP, &other).await?;
    let attached = site.run(&["attach", "other", "main"]).await?.exited(3)?;
    assert_eq!(attached.text(), "/app/entry -- quickly now; 77:0 in /app, blue\n");
    let wide = site.text(&["list", "-o", "wide"]).await?;
    assert!(wide.contains(" MainCommand=Exited"), "{wide}");

    // It is ended like any exec.
    site.create("served", APP, &["--main", "--", "serve"]).await?;
    site.run(&["kill", "served", "main"]).await?.success()?;
    site.cluster.wait_for("served", "condition=MainCommand=False", "50s").await?;
    assert_eq!(condition(&site.get("served").await?)?.1, "Cancelled");

    // An image that says nothing: refused before anything is made, unless the command is given.
    let silent = ["create", "silent", "--image", SCRATCH, "--main"];
    let refused = site.run(&silent).await?.exited(125)?;
    assert!(refused.stderr.contains("neither an entrypoint nor a command"), "{}", refused.stderr);
    site.create("given", SCRATCH, &["--main", "--", "/busybox", "pwd"]).await?;
    let attached = site.run(&["attach", "given", "main"]).await?.exited(0)?;
    assert_eq!(attached.text(), "/\n");

    // A command that is not in the image.
    site.create("empty", EMPTY, &["--main", "--", "/no/such/thing"]).await?;
    site.run(&["wait", "empty", "--exec", "main"]).await?.exited(127)?;
    site.cluster.wait_for("empty", "condition=MainCommand=False", "50s").await?;
    let (_, reason, message) = condition(&site.get("empty").await?)?;
    assert!(reason == "StartFailed" && message.contains("/no/such/thing"), "{reason}: {message}");
    let none = site.run(&["attach", "given", "mane"]).await?.exited(125)?;
    assert!(none.stderr.contains("no exec of given"), "{}", none.stderr);
    Ok(())
}

/// Status, reason and message of the main command's condition.
fn condition(sandbox: &serde_json::Value) -> anyhow::Result<(String, String, String)> {
    let conditions = sandbox["conditions"].as_array().into_iter().flatten();
    let main = conditions.into_iter().find(|condition| condition["type"] == "MainCommand");
    let main = main.ok_or_else(|| anyhow::anyhow!("no MainCommand in {sandbox}"))?;
    let text = |field: &str| main[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason"), text("message")))
}

/// How often it ran, by its own account.
async fn runs(site: &Site) -> anyhow::Result<usize> {
    Ok(site.text(&["exec", "box", "--", "/busybox", "cat", "/workspace/runs"]).await?.lines().count())
}
