//! HTTP for programs that watch: `/healthz`, `/readyz` and `/metrics`.
//!
//! ```text
//! GET /healthz   200 while the process lives and answers; flanneld's path
//! GET /readyz    503 until packets are forwarded; then 200, and what is degraded in words
//! GET /metrics   OpenMetrics text (see `metrics`)
//! ```
//!
//! Whoever reaches the port may ask, so nothing here may be exhausted: a request must come whole within seconds, a
//! connection serves one and lives as long, there are at most so many of them, and many questions in one second get
//! one answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

use super::metrics;

/// How long a request may take to arrive, and how long a connection lives.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest head of a request, in bytes; hyper takes no less.
const LONGEST_HEAD: usize = 8192;
/// How many connections are served at once; one more takes the place of the oldest.
const MAX_CLIENTS: usize = 64;
/// For how long one answer serves all who ask.
const FRESH: Duration = Duration::from_secs(1);

/// What the daemon says of itself.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The metrics, as text.
    pub metrics: String,
    /// Why it is degraded.
    pub reasons: Vec<String>,
}

/// Makes a report.
pub type Reporter = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Report> + Send>> + Send + Sync>;

/// The port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {at}: {cause}; stop what has the port, or set control.metrics")]
pub struct ListenError {
    at: SocketAddr,
    cause: io::Error,
}

#[derive(Default)]
struct Shared {
    reporter: OnceLock<Reporter>,
    last: Mutex<Option<(Instant, Arc<Report>)>>,
}

/// The server. Dropped, it ends.
pub struct Web {
    at: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<Infallible>,
}

impl Web {
    /// Listens, and answers that nothing is ready yet.
    ///
    /// # Errors
    /// If the port cannot be had.
    pub async fn start(at: SocketAddr) -> Result<Self, ListenError> {
        let failed = |cause| ListenError { at, cause };
        let listener = TcpListener::bind(at).await.map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, shared.clone()));
        Ok(Web { at, shared, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// From now on packets are forwarded, and this makes the reports.
    pub fn ready(&self, reporter: Reporter) {
        // The first stays: there is one daemon in a process.
        let _ = self.shared.reporter.set(reporter);
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> Infallible {
    let mut clients: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                clients.retain(|client| !client.is_finished());
                // The one that came first gives way: whoever connects and says nothing keeps nobody out.
                if clients.len() == MAX_CLIENTS {
                    clients.pop_front().iter().for_each(AbortHandle::abort);
                }
                let client = tokio::spawn(serve(stream, shared.clone()));
                clients.push_back(client.abort_handle());
            }
            Err(error) => {
                // Out of descriptors, most likely: others may end meanwhile.
                tracing::debug!(%error, "cannot accept an HTTP client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let answer = service_fn(move |request| answer(request, shared.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    // What a client breaks is its own affair.
    let _ = tokio::time::timeout(2 * PATIENCE, connection).await;
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let head = request.method() == Method::HEAD;
    let path = request.uri().path();
    let (status, kind, body) = if request.method() != Method::GET && !head {
        let only = "only GET and HEAD are answered\n".to_owned();
        (StatusCode::METHOD_NOT_ALLOWED, TEXT, only)
    } else {
        match path {
            "/healthz" => (StatusCode::OK, TEXT, "overlayd is running\n".to_owned()),
            "/readyz" | "/metrics" => match shared.report().await {
                None => {
                    let starting = "starting: no packet is forwarded yet\n".to_owned();
                    (StatusCode::SERVICE_UNAVAILABLE, TEXT, starting)
                }
                Some(report) if path == "/metrics" => {
                    let metrics = report.metrics.clone();
                    (StatusCode::OK, metrics::CONTENT_TYPE, metrics)
                }
                Some(report) => {
                    let reasons = report.reasons.iter();
                    let reasons: String = reasons.map(|r| format!("degraded: {r}\n")).collect();
                    (StatusCode::OK, TEXT, format!("forwarding\n{reasons}"))
                }
            },
            _ => {
                let there = "there are /metrics, /healthz and /readyz\n".to_owned();
                (StatusCode::NOT_FOUND, TEXT, there)
            }
        }
    };
    let body = if head { Bytes::new() } else { body.into() };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let mut set = |name, value: &'static str| {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    };
    set(CONTENT_TYPE, kind);
    set(CACHE_CONTROL, "no-store");
    if status == StatusCode::METHOD_NOT_ALLOWED {
        set(ALLOW, "GET, HEAD");
    }
    Ok(response)
}

impl Shared {
    /// The present report, if there is a daemon to make one.
    async fn report(&self) -> Option<Arc<Report>> {
        let reporter = self.reporter.get()?;
        let mut last = self.last.lock().await;
        if let Some((made, report)) = &*last {
            if made.elapsed() < FRESH {
                return Some(report.clone());
            }
        }
        let report = Arc::new(reporter().await);
        *last = Some((Instant::now(), report.clone()));
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
    }

    async fn start() -> Web {
        Web::start("127.0.0.1:0".parse().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn ready_only_when_there_is_something_to_report() {
        let web = start().await;
        let at = web.address();
        assert!(ask(at, &get("/healthz")).await.starts_with("HTTP/1.1 200"));
        assert!(ask(at, &get("/readyz")).await.starts_with("HTTP/1.1 503"));
        assert!(ask(at, &get("/metrics")).await.starts_with("HTTP/1.1 503"));
        web.ready(Box::new(|| {
            Box::pin(async {
                Report {
                    metrics: "# EOF\n".into(),
                    reasons: vec!["no etcd".into()],
                }
            })
        }));
        let ready = ask(at, &get("/readyz")).await;
        assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("degraded: no etcd\n"));
        let metrics = ask(at, &get("/metrics")).await;
        assert!(
            metrics.contains("openmetrics-text") && metrics.ends_with("# EOF\n"),
            "{metrics}"
        );
    }

    #[tokio::test]
    async fn what_is_not_asked_for_is_told() {
        let web = start().await;
        let missing = ask(web.address(), &get("/")).await;
        assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("/metrics"));
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        let refused = ask(web.address(), post).await;
        assert!(refused.starts_with("HTTP/1.1 405"), "{refused}");
        let head = "HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        assert!(ask(web.address(), head).await.ends_with("\r\n\r\n"));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(3 * LONGEST_HEAD));
        let too_long = ask(web.address(), &long).await;
        assert!(!too_long.starts_with("HTTP/1.1 200"), "{too_long}");
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out() {
        let web = start().await;
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_CLIENTS {
            silent.push(TcpStream::connect(web.address()).await.unwrap());
        }
        let answer = ask(web.address(), &get("/healthz")).await;
        assert!(answer.starts_with("HTTP/1.1 200"));
        // The first of them has been given up by then.
        let mut byte = [0];
        assert!(matches!(silent[0].read(&mut byte).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn many_questions_at_once_get_one_answer() {
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        let web = start().await;
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        web.ready(Box::new(move || {
            counted.fetch_add(1, Relaxed);
            Box::pin(async { Report::default() })
        }));
        let begun = Instant::now();
        for _ in 0..20 {
            ask(web.address(), &get("/metrics")).await;
        }
        let most = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
        assert!(made.load(Relaxed) <= most, "{made:?} in {most} seconds");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let web = start().await;
        let error = Web::start(web.address()).await.err().unwrap().to_string();
        assert!(error.contains("control.metrics"), "{error}");
    }
}
