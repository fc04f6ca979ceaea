//! The baseline's supervisor: dials, runs what it is told, dials again a second after the connection has broken.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::{
    CHUNK, KEEPALIVE, SERVER_NAME, WINDOWS,
    proto::{Hello, Open, Up, relays_client::RelaysClient},
};

/// Messages on their way to the gateway.
const QUEUE: usize = 16;

/// For TCP and TLS, as the product has for its handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two dials.
const REDIAL: Duration = Duration::from_secs(1);

/// Runs until it is killed. `gateway` is `host:port`, resolved at each dial.
///
/// # Errors
/// Its files are not there.
pub async fn run(sandbox: &str, gateway: &str, ca: &Path, keepalive: bool) -> anyhow::Result<()> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(std::fs::read(ca)?))
        .domain_name(SERVER_NAME);
    let mut endpoint = Endpoint::from_shared(format!("https://{gateway}"))?
        .tls_config(tls)?
        .tcp_nodelay(true)
        .connect_timeout(DIAL_TIMEOUT)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    if keepalive {
        endpoint = endpoint
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true);
    }
    loop {
        if let Err(error) = attach(sandbox, &endpoint).await {
            // For its log.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error:#}\n").as_bytes());
        }
        tokio::time::sleep(REDIAL).await;
    }
}

/// One connection, to its end: with it end its commands, as nobody would hear of them.
async fn attach(sandbox: &str, endpoint: &Endpoint) -> anyhow::Result<()> {
    let channel = endpoint.connect().await.context("dialling")?;
    let mut client = RelaysClient::new(channel.clone());
    let hello = Hello { sandbox: sandbox.to_owned() };
    let stays = futures::StreamExt::chain(futures::stream::iter([hello]), futures::stream::pending());
    let mut opens = client.control(stays).await.context("the control stream")?.into_inner();
    let mut execs = JoinSet::new();
    while let Some(open) = opens.message().await.context("the control stream")? {
        let channel = channel.clone();
        execs.spawn(async move {
            if let Err(error) = exec(channel, open).await {
                let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error:#}\n").as_bytes());
            }
        });
    }
    Ok(())
}

async fn exec(channel: Channel, open: Open) -> anyhow::Result<()> {
    let (up, ups) = mpsc::channel(QUEUE);
    up.send(Up { call: open.call, ..Up::default() }).await?;
    let mut down = RelaysClient::new(channel).exec(ReceiverStream::new(ups)).await?.into_inner();
    let mut child = Command::new("sh")
        .args(["-c", &open.script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take().context("stdout was piped")?;
    let feed = async {
        while let Some(message) = down.message().await.context("the command's stream")? {
            if message.eof {
                stdin = None;
            }
            if let Some(pipe) = &mut stdin {
                pipe.write_all(&message.stdin).await?;
            }
        }
        // The gateway's half may end before the command does.
        std::future::pending::<anyhow::Result<()>>().await
    };
    let read = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let got = stdout.read(&mut buffer).await?;
            if got == 0 {
                break;
            }
            let stdout = bytes::Bytes::copy_from_slice(&buffer[..got]);
            up.send(Up { stdout, ..Up::default() }).await?;
        }
        let exit = child.wait().await?.code().unwrap_or(-1);
        up.send(Up { exit: Some(exit), ..Up::default() }).await?;
        anyhow::Ok(())
    };
    let done = tokio::select! { failed = feed => failed, done = read => done };
    drop(up);
    if done.is_ok() {
        // Until the gateway has taken the exit code and ended its half.
        while let Ok(Some(_)) = down.message().await {}
    }
    done
}
