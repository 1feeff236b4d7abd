//! The whole picture, in Grafana's dark colours.

use std::fmt::Write as _;

use super::{
    Span, chart,
    panel::{Kind, Panel, Series},
};

/// Pixels of a column and of a row of the dashboard.
const CELL: [f64; 2] = [54.0, 30.0];
/// Between two panels.
const GAP: f64 = 8.0;
/// Above the panels: the title, and what happened when.
const HEAD: f64 = 64.0;
/// Of lines, one after the other; then again from the first.
pub(super) const COLOURS: [&str; 8] =
    ["#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#b877d9", "#f2495c", "#8ab8ff", "#c0d8a5"];
pub(super) const QUIET: &str = "#9da5b4";

/// A picture in the making.
#[derive(Debug)]
pub(super) struct Canvas<'a> {
    text: String,
    span: &'a Span,
}

/// Where something is drawn, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl<'a> Canvas<'a> {
    pub(super) fn new(title: &str, panels: &[Panel], span: &'a Span) -> Self {
        let bottom = panels.iter().map(|panel| panel.place[1] + panel.place[3]).fold(0.0, f64::max);
        let (width, height) = (24.0 * CELL[0] + GAP, bottom * CELL[1] + HEAD + GAP);
        let mut canvas = Self { text: String::new(), span };
        canvas.put(&format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"Inter, Helvetica, Arial, sans-serif\" font-size=\"11\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#111217\"/>"
        ));
        canvas.label(GAP + 4.0, 28.0, title, "fill=\"#ffffff\" font-size=\"18\"");
        let mut what = String::new();
        for (number, mark) in (1..).zip(&span.marks) {
            let _ = write!(what, "{}{number}: {}", if number > 1 { "   ·   " } else { "" }, mark.what);
        }
        canvas.label(GAP + 4.0, 50.0, &what, &format!("fill=\"{QUIET}\" font-size=\"13\""));
        canvas
    }

    /// Draws a panel with what its queries were answered.
    pub(super) fn draw(&mut self, panel: &Panel, series: &[Series]) {
        let [x, y, width, height] = panel.place;
        let frame = Frame {
            x: x * CELL[0] + GAP,
            y: y * CELL[1] + HEAD,
            width: width * CELL[0] - GAP,
            height: height * CELL[1] - GAP,
        };
        if panel.kind == Kind::Row {
            return self.label(
                frame.x + 4.0,
                frame.y + 16.0,
                &panel.title,
                "fill=\"#ffffff\" font-size=\"14\"",
            );
        }
        let Frame { x, y, width, height } = frame;
        self.put(&format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"2\" fill=\"#181b1f\" stroke=\"#2c3235\"/>"
        ));
        self.label(x + 8.0, y + 18.0, &panel.title, "fill=\"#ccccdc\" font-size=\"12\"");
        match panel.kind {
            Kind::Row => {}
            Kind::Stat => chart::numbers(self, frame, panel.unit, series),
            Kind::Lines => chart::lines(self, frame, panel.unit, series, self.span),
        }
    }

    /// A line of text; `how` are further attributes.
    pub(super) fn label(&mut self, x: f64, y: f64, text: &str, how: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.put(&format!("<text x=\"{x:.0}\" y=\"{y:.0}\" {how}>{text}</text>"));
    }

    /// An element.
    pub(super) fn put(&mut self, element: &str) {
        self.text.push_str(element);
        self.text.push('\n');
    }

    pub(super) fn finish(mut self) -> String {
        self.put("</svg>");
        self.text
    }
}
