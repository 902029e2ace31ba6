//! Routes of the page. They are for people, and not part of the OpenAPI document.

use axum::body::Bytes;
use axum::extract::{Extension, RawQuery, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response as AxumResponse;
use axum::routing::{Router, get, post};

use super::{App, SharedState};
use crate::control::auth::{Admission, Guard};
use crate::control::extract::{HttpError, InPath, run_id};
use crate::control::page::{self, Overview, ROWS};
use crate::store::{DeliveryFilter, DeliveryState, WatchFilter, WatchOrder, WatchState};

/// How the request came in: on the Unix socket without either.
type VisitorOrigin = (Option<Extension<Admission>>, Option<Extension<Guard>>);

/// The routes of the page.
pub(super) fn routes() -> Router<SharedState> {
    let style = || async { page::response(StatusCode::OK, "text/css; charset=utf-8", page::STYLE) };
    let script = || async {
        page::response(
            StatusCode::OK,
            "text/javascript; charset=utf-8",
            page::SCRIPT,
        )
    };
    Router::new()
        .route("/", get(overview))
        .route("/runs/{run_id}", get(run))
        .route("/page.css", get(style))
        .route("/page.js", get(script))
        // A reload of the form after a wrong token.
        .route(
            page::LOGIN,
            get(|| async { page::lead_to(None, None) }).post(login),
        )
        .route(page::LOGOUT, post(logout))
}

fn has_session(visitor: &VisitorOrigin) -> bool {
    let access = visitor.0.as_ref().map(|Extension(access)| access);
    matches!(access, Some(Admission::Session(_)))
}

async fn overview(State(app): App, visitor: VisitorOrigin) -> Result<AxumResponse, HttpError> {
    // Before all else, so that the script misses nothing that comes while the rest is read.
    let newest_event = app.control.store.newest_event().await?;
    let of = |state, order| WatchFilter {
        state: Some(state),
        order,
        ..WatchFilter::default()
    };
    let undelivered = DeliveryFilter {
        states: vec![
            DeliveryState::Pending,
            DeliveryState::Sending,
            DeliveryState::Dead,
        ],
        newest_first: true,
        ..DeliveryFilter::default()
    };
    let overview = Overview {
        active: app
            .list(of(WatchState::Active, WatchOrder::Newest), ROWS)
            .await?,
        ended: app
            .list(of(WatchState::Finished, WatchOrder::Ended), ROWS)
            .await?,
        deliveries: app.delivery_list(undelivered, ROWS).await?.deliveries,
        providers: app.polling().await?.providers,
        sinks: app.sinks().await?.sinks,
        newest_event,
        now: app.control.clock.now(),
        has_session: has_session(&visitor),
    };
    Ok(overview.response())
}

async fn run(
    State(app): App,
    uri: Uri,
    id: InPath,
    visitor: VisitorOrigin,
) -> Result<AxumResponse, HttpError> {
    let has_session = has_session(&visitor);
    let nothing = |why: &str| page::nothing(StatusCode::NOT_FOUND, uri.path(), has_session, why);
    let providers = app.control.live_config.borrow().providers.clone();
    let Ok(run) = run_id(&id?.0, &providers) else {
        return Ok(nothing("This address names no run."));
    };
    let newest_event = app.control.store.newest_event().await?;
    let Some(history) = app.control.store.history(run.clone()).await? else {
        return Ok(nothing(&format!(
            "{run} is not watched, or it ended so long ago that it is no longer stored."
        )));
    };
    let watch = app.document(history).await?;
    let now = app.control.clock.now();
    Ok(page::of_run(
        &watch,
        uri.path(),
        newest_event,
        now,
        has_session,
    ))
}

async fn login(
    RawQuery(query): RawQuery,
    guard: Option<Extension<Guard>>,
    body: Bytes,
) -> Result<AxumResponse, HttpError> {
    let next = field(query.unwrap_or_default().as_bytes(), "next");
    let Some(Extension(guard)) = guard else {
        return Ok(page::lead_to(next.as_deref(), None));
    };
    // What was pasted may end with the line of its file.
    let token = field(&body, "token").unwrap_or_default();
    let begun = guard.begin_session(token.trim().as_bytes()).await?;
    Ok(match begun {
        Ok(cookie) => page::lead_to(next.as_deref(), Some(cookie)),
        Err(hint) => page::login(page::LOGIN, next.as_deref(), hint),
    })
}

async fn logout(guard: Option<Extension<Guard>>) -> Result<AxumResponse, HttpError> {
    let cookie = match guard {
        Some(Extension(guard)) => guard.end_session().await?,
        None => None,
    };
    Ok(page::lead_to(None, cookie))
}

/// A field of a form or a query.
fn field(encoded: &[u8], name: &str) -> Option<String> {
    let mut fields = form_urlencoded::parse(encoded);
    fields
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.into_owned())
}
