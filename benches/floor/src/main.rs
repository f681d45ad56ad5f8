//! A bare socketioxide relay in the style of the library's examples: no rules, no ordering, no history. With REDIS_URL several
//! processes share its Redis adapter.

use std::{env, error::Error};

use axum::serve::ListenerExt;
use fred::{
    prelude::{Builder, Config},
    types::RespVersion,
};
use serde_json::{Map, Value};
use socketioxide::{
    SocketIo,
    adapter::Adapter,
    extract::{Data, SocketRef},
};
use socketioxide_redis::{FredAdapter, RedisAdapterCtr};
use tokio::net::TcpListener;

#[derive(Clone)]
struct User(String);

/// An event, and its name for the other party.
const RELAYED: [(&str, &str); 5] = [
    ("call:initiate", "call:incoming"),
    ("call:offer", "call:offer"),
    ("call:answer", "call:answer"),
    ("call:ice-candidate", "call:ice-candidate"),
    ("call:end", "call:ended"),
];

async fn on_connect<A: Adapter>(socket: SocketRef<A>) {
    socket.on("user-connected", async |socket: SocketRef<A>, Data(user): Data<String>| {
        socket.join(format!("user:{user}"));
        socket.extensions.insert(User(user));
    });
    for (event, out) in RELAYED {
        socket.on(
            event,
            async move |socket: SocketRef<A>, Data(mut payload): Data<Map<String, Value>>| {
                let Some(Value::String(to)) = payload.remove("toUserId") else { return };
                let Some(User(from)) = socket.extensions.get::<User>() else { return };
                payload.insert("fromUserId".to_owned(), from.into());
                if let Err(error) = socket.to(format!("user:{to}")).emit(out, &payload).await {
                    eprintln!("{error}");
                }
            },
        );
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = env::var("PORT").unwrap_or("0".to_owned());
    let router = match env::var("REDIS_URL") {
        Ok(url) => {
            let mut config = Config::from_url(&url)?;
            config.version = RespVersion::RESP3;
            let mut builder = Builder::from_config(config);
            // The default of 32 loses messages in bursts.
            builder.with_performance_config(|performance| {
                performance.broadcast_channel_capacity = 65_536;
            });
            let client = builder.build_subscriber_client()?;
            let adapter = RedisAdapterCtr::new_with_fred(client).await?;
            let (layer, io) =
                SocketIo::builder().with_adapter::<FredAdapter<_>>(adapter).build_layer();
            io.ns("/", on_connect).await?;
            axum::Router::new().layer(layer)
        }
        Err(_) => {
            let (layer, io) = SocketIo::new_layer();
            io.ns("/", on_connect);
            axum::Router::new().layer(layer)
        }
    };
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("ready: http://{}/", listener.local_addr()?);
    // Otherwise Nagle's algorithm delays the second of two packets by 40 ms.
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap_or_default());
    axum::serve(listener, router).await?;
    Ok(())
}
