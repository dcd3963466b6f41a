//! A page for people: one file, no scripts, nothing loaded from elsewhere.

use std::fmt::Write as _;

use fettler_model::{Status, Timestamp};

use super::{Listed, escaped};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1a1a1a;background:#fff}\
h1{font-size:1.4rem}article{border-left:.4rem solid #999;margin:1rem 0;padding:.2rem 1rem}\
h2{font-size:1rem;margin:.3rem 0}.critical{border-color:#a40000}.high{border-color:#d9480f}.medium{border-color:#e0a100}\
.low{border-color:#3b7dd8}p{margin:.3rem 0}small{color:#555}code{display:block;background:#f3f3f3;padding:.3rem .6rem;overflow-x:auto}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}small{color:#aaa}code{background:#262626}}";

/// The page.
pub(super) fn page(findings: &[Listed], now: Timestamp) -> String {
    let open = findings
        .iter()
        .filter(|listed| listed.finding.status == Status::Open)
        .count();
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Findings</title><style>{STYLE}</style></head>\n<body>\n<h1>{} findings, {open} of them open</h1>\n<p><small>{now}</small></p>\n",
        findings.len(),
    );
    for listed in findings {
        one(&mut html, listed);
    }
    html.push_str("</body>\n</html>");
    html
}

fn one(html: &mut String, listed: &Listed) {
    let finding = &listed.finding;
    let mut add = |text: String| html.push_str(&text);
    add(format!(
        "<article class=\"{}\">\n<h2>{}</h2>\n<p><small>{} · {} · {} · {} · since {}</small></p>\n<p>{}</p>\n<p>{}</p>\n",
        finding.severity,
        escaped(&finding.title),
        finding.severity,
        escaped(&listed.database),
        escaped(&finding.key),
        escaped(&super::told(&finding.status)),
        listed.opened,
        escaped(&finding.why),
        escaped(&finding.fix.text),
    ));
    for command in &finding.fix.commands {
        add(format!("<code>{}</code>\n", escaped(command)));
    }
    let mut evidence = String::new();
    for (name, value) in &finding.evidence {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        write!(evidence, "{}: {}; ", escaped(name), escaped(&value))
            .expect("writing to a string does not fail");
    }
    if !evidence.is_empty() {
        add(format!(
            "<p><small>Seen: {}</small></p>\n",
            evidence.trim_end_matches("; ")
        ));
    }
    if !finding.references.is_empty() {
        add(format!(
            "<p><small>See: {}</small></p>\n",
            escaped(&finding.references.join("; "))
        ));
    }
    add("</article>\n".to_owned());
}
