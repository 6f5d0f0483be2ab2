import { useEffect } from "preact/hooks";
import { useValue } from "../hooks.ts";
import { type Key, t } from "../i18n.ts";
import { match, place } from "../router.ts";
import type { Person } from "../session.ts";
import { Empty, Link } from "../ui/parts.tsx";
import { Books } from "./books.tsx";
import { DeadLetters } from "./deadletters.tsx";
import { watch } from "./flow.ts";
import { Flow } from "./flow.tsx";

const TABS: [href: string, name: Key][] = [
  ["/operator", "flow"],
  ["/operator/dead-letters", "deadLetters"],
  ["/operator/books", "books"],
];

export function Operator(_: { person: Person }) {
  const { path } = useValue(place);
  useEffect(watch, []); // on every tab, so that the plots have no gaps
  return (
    <div class="staff">
      <nav class="tabs" aria-label={t("operatorArea")}>
        {TABS.map(([href, name]) => (
          <Link key={href} href={href} aria-current={path === href ? "page" : undefined}>
            {t(name)}
          </Link>
        ))}
      </nav>
      {match("/operator", path) ? (
        <Flow />
      ) : match("/operator/dead-letters", path) ? (
        <DeadLetters />
      ) : match("/operator/books", path) ? (
        <Books />
      ) : (
        <Empty screen title={t("notFound")} />
      )}
    </div>
  );
}
