//! Opens links in the browser of the desktop (freedesktop.org, xdg-utils).

use std::process::{ExitStatus, Stdio};

use tokio::runtime::Handle;

use crate::blocking;
use crate::hardening::clear_secret_environment;

/// Opens a link as the desktop does. Never a shell: the link is one argument.
///
/// # Errors
/// When `xdg-open` cannot be started, or fails.
pub(crate) async fn open(url: &str) -> std::io::Result<()> {
    // What a service starts is confined as the service is, and ends with it; a browser must do neither.
    // `ExitType=cgroup`: xdg-open ends long before the browser does.
    let apart = [
        "systemd-run",
        "--user",
        "--quiet",
        "--collect",
        "--property=ExitType=cgroup",
        "--",
        "xdg-open",
        url,
    ];
    if std::env::var_os("INVOCATION_ID").is_some()
        && run(&apart).await.is_ok_and(|status| status.success())
    {
        return Ok(());
    }
    let status = run(&["xdg-open", url]).await?;
    if status.success() {
        Ok(())
    } else {
        Err(std::io::Error::other(format!(
            "xdg-open ended with {status}"
        )))
    }
}

async fn run(argv: &[&str]) -> std::io::Result<ExitStatus> {
    let mut command = tokio::process::Command::new(argv[0]);
    command
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    clear_secret_environment(&mut command);
    let runtime = Handle::current();
    let start = move || {
        let _context = runtime.enter();
        command.spawn()
    };
    blocking::run("starts", start).await??.wait().await
}
