"""The style sheet of `report.html`, for light and dark screens.

Knows colours and sizes. Knows nothing of what they are for.
"""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --page: #ffffff; --soft: #555555; --rule: #d8d8d8;
        --curve: #1f5fa8; --up: #1a7f4b; --down: #b5380f; --mark-up: #c9ecd6; --mark-down: #fad3c5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --page: #15171a; --soft: #aab0b6; --rule: #3a3e43; --curve: #7db4f0; --up: #5fce94;
          --down: #f5936b; --mark-up: #1d5236; --mark-down: #6b2a14; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 64rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
td { overflow-wrap: anywhere; }
figure { margin: 1.6rem 0; } figcaption { max-width: 44rem; }
svg { width: 100%; max-width: 44rem; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--rule); }
svg polyline.curve { fill: none; stroke: var(--curve); stroke-width: 2; } svg circle.curve { fill: var(--curve); }
svg rect.up { fill: var(--up); } svg rect.down { fill: var(--down); }
code, .text { font: 14px/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { color: inherit; font-weight: bold; border-radius: 3px; }
mark.up { background: var(--mark-up); } mark.down { background: var(--mark-down); }
.odd { color: var(--soft); border: 1px dotted var(--soft); border-radius: 3px; }
"""
