//! The callers' way to the gateway's API: one address on this host, which leads to the host where the gateway is now.
//!
//! Callers are on the wire without faults; they must not be what moves when a gateway does.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A TCP port that leads on; closed when dropped, with all that goes through it.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) address: SocketAddr,
    leads_to: Arc<Mutex<SocketAddr>>,
    _open: JoinSet<()>,
}

impl Door {
    pub(super) async fn open(leads_to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let leads_to = Arc::new(Mutex::new(leads_to));
        let mut open = JoinSet::new();
        open.spawn(serve(listener, Arc::clone(&leads_to)));
        Ok(Self { address, leads_to, _open: open })
    }

    /// New connections lead there.
    pub(super) fn lead_to(&self, address: SocketAddr) {
        *self.leads_to.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

async fn serve(listener: TcpListener, leads_to: Arc<Mutex<SocketAddr>>) {
    let mut through = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((mut caller, _)) = accepted else { continue };
                let to = *leads_to.lock().unwrap_or_else(PoisonError::into_inner);
                through.spawn(async move {
                    // Nobody there: the caller sees a closed connection, as it would without this door.
                    let Ok(mut gateway) = TcpStream::connect(to).await else { return };
                    let _ = (caller.set_nodelay(true), gateway.set_nodelay(true));
                    let _ = tokio::io::copy_bidirectional_with_sizes(&mut caller, &mut gateway, 256 << 10, 256 << 10).await;
                });
            }
            Some(_) = through.join_next(), if !through.is_empty() => {}
        }
    }
}
