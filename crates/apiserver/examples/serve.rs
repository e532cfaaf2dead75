//! Plain HTTP on loopback as an administrator, to try the server with kubectl: `serve ADDRESS CRD.json…`
use axum::body::Body;
use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let start = std::time::Instant::now();
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("an address is needed")?;
    let mut crds = Vec::new();
    for path in args {
        let text = std::fs::read_to_string(path)?;
        let values: serde_json::Value = serde_json::from_str(&text)?;
        match values {
            serde_json::Value::Array(list) => crds.extend(list),
            one => crds.push(one),
        }
    }
    let server = ApiServer::open(Config {
        crds,
        ..Config::memory()
    })
    .await?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    eprintln!("serving after {:?}", start.elapsed());
    loop {
        let (stream, _) = listener.accept().await?;
        let server = server.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let server = server.clone();
                async move {
                    let mut request = request.map(Body::new);
                    request.extensions_mut().insert(UserInfo::admin("admin"));
                    Ok::<_, std::convert::Infallible>(server.handle(request).await)
                }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}
