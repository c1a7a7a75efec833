//! Word of changed reference tables, by `LISTEN`. Reads no table: whoever listens decides what to do.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::mpsc;
use tracing::warn;

use super::store::{ANYTHING, StoreError};

/// The channel on which the triggers of `migrations/` notify; the payload is the table's name.
pub const CHANNEL: &str = "tally_reference";

/// Names that may wait for their reader. A full queue holds back the notifications in Postgres, not here.
const NAMES_AHEAD_MAX: usize = 256;

const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The names of changed tables as Postgres tells them, and [`ANYTHING`] after a lost connection. Ends when
/// the receiver is dropped or the pool is closed.
pub async fn listen(pool: &PgPool) -> Result<mpsc::Receiver<String>, StoreError> {
    let listener = connect(pool).await.map_err(|e| {
        StoreError::away(format!("LISTEN {CHANNEL}"), format!("{e}; is the server running, and a primary?"))
    })?;
    let (sender, receiver) = mpsc::channel(NAMES_AHEAD_MAX);
    let pool = pool.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = forward(pool, listener, &sender) => {}
            () = sender.closed() => {}
        }
    });
    Ok(receiver)
}

async fn connect(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Returns only when nobody wants the names any more, or none will come.
async fn forward(pool: PgPool, mut listener: PgListener, sender: &mpsc::Sender<String>) -> Option<()> {
    loop {
        let changed = match listener.try_recv().await {
            Ok(Some(notification)) => notification.payload().to_owned(),
            // The listener has connected and listens again.
            Ok(None) => ANYTHING.to_owned(),
            Err(e) => {
                warn!("postgres: LISTEN {CHANNEL}: {e}; connecting again");
                listener = reconnect(&pool).await?;
                ANYTHING.to_owned()
            }
        };
        sender.send(changed).await.ok()?;
    }
}

/// A new listener as soon as Postgres answers; the old one keeps a connection that was reset.
async fn reconnect(pool: &PgPool) -> Option<PgListener> {
    loop {
        match connect(pool).await {
            Ok(listener) => return Some(listener),
            Err(sqlx::Error::PoolClosed) => return None,
            Err(_) => tokio::time::sleep(RECONNECT_PAUSE).await,
        }
    }
}
