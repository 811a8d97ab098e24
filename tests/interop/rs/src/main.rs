//! A Rust library of yamux at one end of a session with revdial, as a relay between its streams and
//! TCP. What it takes and does is what ../go/relay.go says.
use futures::{SinkExt, StreamExt};
use std::{env, future::poll_fn, io, net::SocketAddr, process, task::Poll, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::{client::IntoClientRequest, handshake::server, Message};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::task::TaskTracker;

type Failure = Box<dyn std::error::Error + Send + Sync>;
trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}
type Bytes = Box<dyn Both>;

/// Streams of a session: those that the peer opens come, ours are asked for.
struct Session {
    accepted: mpsc::UnboundedReceiver<Bytes>,
    opens: mpsc::UnboundedSender<oneshot::Sender<Bytes>>,
}

/// Drives a session of rust-yamux, whose versions have one interface.
macro_rules! rust_yamux {
    ($yamux:ident, $io:expr, $is_client:expr, $accepted:expr, $asked:expr) => {{
        let mode = if $is_client { $yamux::Mode::Client } else { $yamux::Mode::Server };
        let mut connection = $yamux::Connection::new($io.compat(), Default::default(), mode);
        let (accepted, mut asked, mut reply) = ($accepted, $asked, None);
        tokio::spawn(poll_fn(move |cx| loop {
            if reply.is_none() {
                if let Poll::Ready(Some(asker)) = asked.poll_recv(cx) {
                    reply = Some(asker);
                }
            }
            if reply.is_some() {
                if let Poll::Ready(stream) = connection.poll_new_outbound(cx) {
                    let asker: oneshot::Sender<Bytes> = reply.take().unwrap();
                    if let Ok(stream) = stream {
                        let _ = asker.send(Box::new(stream.compat()));
                    }
                    continue;
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    let _ = accepted.send(Box::new(stream.compat()) as Bytes);
                }
                Poll::Ready(end) => {
                    eprintln!("relay: the session ended: {end:?}");
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }));
    }};
}

async fn tokio_yamux(
    io: Bytes,
    is_client: bool,
    accepted: mpsc::UnboundedSender<Bytes>,
    mut asked: mpsc::UnboundedReceiver<oneshot::Sender<Bytes>>,
) {
    let mut config = tokio_yamux::Config::default();
    config.keepalive_interval = Duration::from_millis(500); // so that it pings while we look
    let mut session = match is_client {
        true => tokio_yamux::Session::new_client(io, config),
        false => tokio_yamux::Session::new_server(io, config),
    };
    let mut control = session.control();
    tokio::spawn(async move {
        while let Some(reply) = asked.recv().await {
            if let Ok(stream) = control.open_stream().await {
                let _ = reply.send(Box::new(stream));
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(stream)) = session.next().await {
            let _ = accepted.send(Box::new(stream));
        }
    });
}

async fn session_of(library: &str, io: Bytes, is_client: bool) -> Session {
    let (accepted_in, accepted) = mpsc::unbounded_channel();
    let (opens, asked) = mpsc::unbounded_channel();
    match library {
        "rust-yamux-13" => rust_yamux!(yamux13, io, is_client, accepted_in, asked),
        "rust-yamux-14" => rust_yamux!(yamux14, io, is_client, accepted_in, asked),
        "tokio-yamux" => tokio_yamux(io, is_client, accepted_in, asked).await,
        _ => usage(),
    }
    Session { accepted, opens }
}

/// Joins a stream with a TCP connection until both directions have ended. Dropping a stream that
/// has not ended resets it.
async fn copy_both(stream: Bytes, mut tcp: TcpStream) {
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let (mut from_tcp, mut to_tcp) = tcp.split();
    let up = async {
        tokio::io::copy(&mut from_tcp, &mut to_stream).await?;
        to_stream.shutdown().await
    };
    let down = async {
        tokio::io::copy(&mut from_stream, &mut to_tcp).await?;
        to_tcp.shutdown().await
    };
    let done: io::Result<_> = async { tokio::try_join!(up, down) }.await;
    if done.is_err() {
        let _ = tcp.set_zero_linger();
    }
}

async fn backend(lib: &str, url: &str, target: SocketAddr, features: &str) -> Result<(), Failure> {
    let mut session = session_of(lib, ask(url, features).await?, false).await;
    let relays = TaskTracker::new();
    while let Some(stream) = session.accepted.recv().await {
        relays.spawn(async move {
            if let Ok(tcp) = TcpStream::connect(target).await {
                copy_both(stream, tcp).await;
            }
        });
    }
    relays.close();
    relays.wait().await;
    Ok(())
}

async fn proxy(library: &str, scheme: &str, features: &str) -> Result<(), Failure> {
    let backends = TcpListener::bind("127.0.0.1:0").await?;
    let clients = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", backends.local_addr()?);
    println!("listening on {} for clients", clients.local_addr()?);
    let io = answer(backends.accept().await?.0, scheme, features).await?;
    let mut session = session_of(library, io, true).await;
    let relays = TaskTracker::new();
    loop {
        tokio::select! {
            client = clients.accept() => {
                let (reply, opened) = oneshot::channel();
                let _ = session.opens.send(reply);
                let tcp = client?.0;
                relays.spawn(async move {
                    match opened.await {
                        Ok(stream) => copy_both(stream, tcp).await,
                        Err(_) => { let _ = tcp.set_zero_linger(); }
                    }
                });
            }
            stream = session.accepted.recv() => {
                if stream.is_none() { break; } // what the other side opens is not wanted: dropped
            }
        }
    }
    drop(clients);
    relays.close();
    relays.wait().await;
    Ok(())
}

fn token() -> String {
    format!("Bearer {}", env::var("REVDIAL_TOKEN").unwrap_or_default())
}

/// Dials a proxy and turns the connection round.
async fn ask(url: &str, features: &str) -> Result<Bytes, Failure> {
    let mut request = url.into_client_request()?;
    let address = request.uri().authority().ok_or("no host")?.to_string();
    let mut tcp = TcpStream::connect(&address).await?;
    tcp.set_nodelay(true)?;
    let mut headers = vec![("authorization", token()), ("revdial-name", "peer".into())];
    if !features.is_empty() {
        headers.push(("revdial-version", "1".into()));
        headers.push(("revdial-features", features.into()));
    }
    if url.starts_with("ws:") {
        headers.push(("sec-websocket-protocol", "revdial".into()));
        for (name, value) in headers {
            request.headers_mut().insert(name, value.parse()?);
        }
        return Ok(bytes_of(tokio_tungstenite::client_async(request, tcp).await?.0));
    }
    let path = request.uri().path();
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n");
    head += "Connection: Upgrade\r\nUpgrade: revdial\r\n";
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    tcp.write_all((head + "\r\n").as_bytes()).await?;
    let answer = head_of(&mut tcp).await?;
    if !answer.starts_with("HTTP/1.1 101") {
        return Err(answer.into());
    }
    Ok(Box::new(tcp))
}

/// Answers the upgrade of a backend.
async fn answer(mut tcp: TcpStream, scheme: &str, features: &str) -> Result<Bytes, Failure> {
    tcp.set_nodelay(true)?;
    let mut headers = vec![];
    if !features.is_empty() {
        headers = vec![("revdial-version", "1"), ("revdial-features", features)];
    }
    if scheme == "ws" {
        #[allow(clippy::result_large_err)] // the callback's type is that of the library
        let judge = |_: &server::Request, mut response: server::Response| {
            headers.push(("sec-websocket-protocol", "revdial"));
            for (name, value) in &headers {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            Ok(response)
        };
        return Ok(bytes_of(tokio_tungstenite::accept_hdr_async(tcp, judge).await?));
    }
    head_of(&mut tcp).await?;
    let mut head = "HTTP/1.1 101 Switching Protocols\r\n".to_string();
    head += "Connection: Upgrade\r\nUpgrade: revdial\r\n";
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    tcp.write_all((head + "\r\n").as_bytes()).await?;
    Ok(Box::new(tcp))
}

/// Reads to the end of an HTTP head and no byte further.
async fn head_of(tcp: &mut TcpStream) -> Result<String, Failure> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

/// The payload of binary messages as a stream of bytes.
fn bytes_of(socket: tokio_tungstenite::WebSocketStream<TcpStream>) -> Bytes {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut reader, mut writer) = tokio::io::split(far);
    let (mut to_peer, mut from_peer) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = from_peer.next().await {
            let Message::Binary(bytes) = message else { continue };
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buf = vec![0; 1 << 16];
        while let Ok(n @ 1..) = reader.read(&mut buf).await {
            if to_peer.send(Message::binary(buf[..n].to_vec())).await.is_err() {
                break;
            }
        }
        let _ = to_peer.close().await;
    });
    Box::new(near)
}

fn usage() -> ! {
    eprintln!("usage: relay LIBRARY backend URL TARGET [FEATURES] | proxy SCHEME [FEATURES]");
    process::exit(2)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words[..] {
        [library, "backend", url, target] => backend(library, url, target.parse()?, "").await,
        [library, "backend", url, target, features] => {
            backend(library, url, target.parse()?, features).await
        }
        [library, "proxy", scheme] => proxy(library, scheme, "").await,
        [library, "proxy", scheme, features] => proxy(library, scheme, features).await,
        _ => usage(),
    }
}
