//! Desktop notifications over the session bus.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use notify_rust::{Hint, Notification, NotificationHandle, NotificationResponse, Urgency};
use reqwest::Url;
use tokio::task::{AbortHandle, JoinSet};

use super::summary::{self, Severity};
use super::{Message, Preview, SendError, Sent};
use crate::domain::Event;
use crate::links::with_page;
use crate::xdg_open::open;

/// Limit of one attempt: a bus or a daemon that hangs never answers.
const LIMIT: Duration = Duration::from_secs(2);

/// How long a click on a message is waited for.
const CLICK_LIMIT: Duration = Duration::from_secs(600);

/// Most messages whose clicks are waited for at once; the oldest is let go first.
const MAX_CLICKS: usize = 16;

/// Desktop notifications.
#[derive(Debug)]
pub struct Desktop {
    /// Where messages link to the views of runs.
    page: Option<Url>,
    /// Held only to add a task.
    clicks: Mutex<Clicks>,
}

/// Tasks that wait for clicks.
#[derive(Debug, Default)]
struct Clicks {
    tasks: JoinSet<()>,
    oldest_first: VecDeque<AbortHandle>,
}

impl Desktop {
    pub(super) fn new(page: Option<Url>) -> Self {
        Self {
            page,
            clicks: Mutex::default(),
        }
    }

    /// What would be shown.
    pub(super) fn preview(&self, message: &Message<'_>) -> Preview {
        preview(&with_page(message.event, self.page.as_ref()))
    }

    pub(super) async fn send(&self, message: &Message<'_>) -> Result<Sent, SendError> {
        let event = with_page(message.event, self.page.as_ref());
        let (notification, url) = notification(&event);
        // Each message makes a connection of its own: a bus that was restarted is no matter.
        let shown = tokio::time::timeout(LIMIT, notification.show_async()).await;
        let handle = match shown {
            Ok(Ok(handle)) => handle,
            Ok(Err(error)) => {
                return Err(SendError::new(format!("no desktop to be reached: {error}")));
            }
            Err(_elapsed) => return Err(SendError::new("the desktop did not answer within 2 s")),
        };
        let id = handle.id();
        if let Some(url) = url {
            self.await_click(handle, url);
        }
        Ok(Sent {
            detail: format!("shown as notification {id}"),
        })
    }

    /// Opens `url` when the message is clicked, as long as this sink lives.
    fn await_click(&self, handle: NotificationHandle, url: String) {
        let mut clicks = self.clicks.lock().expect("no holder panics");
        while clicks.tasks.try_join_next().is_some() {}
        clicks.oldest_first.retain(|task| !task.is_finished());
        if clicks.oldest_first.len() >= MAX_CLICKS
            && let Some(oldest) = clicks.oldest_first.pop_front()
        {
            oldest.abort();
        }
        let task = clicks.tasks.spawn(async move {
            let mut clicked = false;
            let waiting = handle.wait_for_action_async(|response: &NotificationResponse| {
                clicked = matches!(response, NotificationResponse::Default);
            });
            let ended = tokio::time::timeout(CLICK_LIMIT, waiting).await;
            if ended.is_ok()
                && clicked
                && let Err(error) = open(&url).await
            {
                tracing::warn!(%error, "cannot open the link of a notification");
            }
        });
        clicks.oldest_first.push_back(task);
    }
}

/// The notification of an event, and the link that a click on it opens.
fn notification(event: &Event) -> (Notification, Option<String>) {
    let summary = summary::of(event);
    let mut notification = Notification::new();
    let (urgency, icon) = match summary.weight {
        Severity::Good => (Urgency::Normal, "dialog-information"),
        Severity::Bad => (Urgency::Critical, "dialog-error"),
    };
    notification
        .appname("runwatch")
        .summary(&summary.title)
        .body(&escape(&summary.lines.join("\n")))
        .urgency(urgency)
        .hint(Hint::DesktopEntry("runwatch".to_owned()))
        .icon(icon);
    let url = summary
        .url
        .filter(|url| url.starts_with("https://") || url.starts_with("http://"));
    if url.is_some() {
        // `default` is the action of a click on the message itself.
        notification.action("default", "Open the run");
    }
    (notification, url)
}

/// What would be shown of an event.
fn preview(event: &Event) -> Preview {
    let (notification, url) = notification(event);
    let urgency = match summary::of(event).weight {
        Severity::Good => "normal",
        Severity::Bad => "critical",
    };
    let fields = [
        ("summary", notification.summary),
        ("urgency", urgency.to_owned()),
        ("icon", notification.icon),
    ];
    let link = url.map(|url| ("link", url));
    Preview {
        target: "a notification on the desktop".to_owned(),
        fields: fields
            .into_iter()
            .chain(link)
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        body: notification.body,
    }
}

/// The body may hold markup (Desktop Notifications Specification, "Markup"), so what is not meant as
/// markup is escaped. The title may not, and is not.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
