//! A minimal Socket.IO client on a bare websocket: text in, text out.
//! (Engine.IO protocol 4, Socket.IO protocol 5.)

use std::net::{Ipv4Addr, SocketAddr};

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, Utf8Bytes, protocol::WebSocketConfig},
};

use super::report::BenchError;

/// The library reads into 128 KiB a connection, which tens of thousands of connections have not got.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// A connected client.
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Connects as a user to `url` (`ws://host:port`), sends `user-connected` as old clients do, and waits until the
    /// server has connected it.
    pub async fn connect(url: &str, user: &str) -> Result<Self, BenchError> {
        let mut client = Self::open(url, None).await?;
        client.join(url, user).await?;
        Ok(client)
    }

    /// Opens a connection that has not joined yet, from one of this machine's own addresses: one address
    /// has ports for some 28,000.
    pub async fn open(url: &str, source: Option<Ipv4Addr>) -> Result<Self, BenchError> {
        let failed = |error: String| BenchError::Connect { url: url.to_owned(), error };
        let address = url.strip_prefix("ws://").ok_or_else(|| failed("expected ws://".into()))?;
        let address = address.trim_end_matches('/');
        let stream =
            connect_from(source, address).await.map_err(|error| failed(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        let request = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let stream = MaybeTlsStream::Plain(stream);
        let (socket, _) = client_async_with_config(request, stream, Some(config))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let mut client = Self { socket };
        client.packet().await?;
        Ok(client)
    }

    /// Joins as a user.
    pub async fn join(&mut self, url: &str, user: &str) -> Result<(), BenchError> {
        self.send(format!(r#"40{{"userId":"{user}"}}"#)).await?;
        loop {
            let packet = self.packet().await?;
            if packet.starts_with("40") {
                break;
            }
            if packet.starts_with("44") {
                let (url, error) = (url.to_owned(), packet.to_string());
                return Err(BenchError::Connect { url, error });
            }
        }
        self.send(format!(r#"42["user-connected","{user}"]"#)).await
    }

    /// Sends a raw packet.
    pub async fn send(&mut self, packet: impl Into<Utf8Bytes>) -> Result<(), BenchError> {
        Ok(self.socket.send(Message::Text(packet.into())).await?)
    }

    /// Sends a frame that is no text, such as a websocket's own ping.
    pub async fn send_frame(&mut self, frame: Message) -> Result<(), BenchError> {
        Ok(self.socket.send(frame).await?)
    }

    /// Sends many packets with one write, or a few.
    pub async fn send_all(
        &mut self,
        packets: impl IntoIterator<Item = String>,
    ) -> Result<(), BenchError> {
        for packet in packets {
            self.socket.feed(Message::Text(packet.into())).await?;
        }
        Ok(self.socket.flush().await?)
    }

    /// The next packet that is not a ping. Answers pings.
    pub async fn packet(&mut self) -> Result<Utf8Bytes, BenchError> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(packet))) if packet.as_str() == "2" => {
                    self.send("3").await?;
                }
                Some(Ok(Message::Text(packet))) => return Ok(packet),
                Some(Ok(Message::Close(_))) | None => return Err(BenchError::Closed),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }

    /// The next event with this name, skipping others. A refusal of the server is an error.
    pub async fn event(&mut self, name: &str) -> Result<Utf8Bytes, BenchError> {
        loop {
            let packet = self.packet().await?;
            match event_name(&packet) {
                Some(found) if found == name => return Ok(packet),
                Some("call:error" | "call:rejected" | "call:busy") => {
                    return Err(BenchError::Refused(packet.to_string()));
                }
                _ => {}
            }
        }
    }

    pub async fn close(mut self) -> Result<(), BenchError> {
        match self.socket.close(None).await {
            Ok(()) | Err(tungstenite::Error::ConnectionClosed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn connect_from(source: Option<Ipv4Addr>, address: &str) -> std::io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(address).await };
    let target = tokio::net::lookup_host(address).await?.find(SocketAddr::is_ipv4);
    let target = target.ok_or_else(|| std::io::Error::other("it has no IPv4 address"))?;
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(target).await
}

/// The name of the event in a packet; None for other packets.
pub fn event_name(packet: &str) -> Option<&str> {
    packet.strip_prefix(r#"42[""#)?.split('"').next()
}

/// The number that follows `marker` in a packet.
pub fn number_after(packet: &str, marker: &str) -> Option<u32> {
    let digits = packet.split_once(marker)?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}
