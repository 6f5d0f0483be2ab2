import { useEffect, useState } from "preact/hooks";
import { doing } from "../doing.ts";
import { useValue } from "../hooks.ts";
import { useHospitals } from "../hospitals.ts";
import { explain, type Key, t } from "../i18n.ts";
import { match, place } from "../router.ts";
import type { Person } from "../session.ts";
import { Empty, Field, Link, Read } from "../ui/parts.tsx";
import { Pending } from "../ui/pending.tsx";
import { say } from "../ui/toast.tsx";
import { DayList } from "./daylist.tsx";
import { LotPage } from "./lot.tsx";
import { Lots } from "./lots.tsx";
import { Places } from "./places.tsx";
import type { Here } from "./staff.ts";
import { Waiting } from "./waiting.tsx";

const TABS: [href: string, name: Key][] = [
  ["/manager", "dayList"],
  ["/manager/waiting", "waiting"],
  ["/manager/lots", "lots"],
  ["/manager/places", "places"],
];
const CHOSEN = "hospital";

export function Manager({ person }: { person: Person }) {
  const hospitals = useHospitals();
  const { path } = useValue(place);
  const [chosen, choose] = useState(person.hospital || sessionStorage.getItem(CHOSEN) || "");
  const pending = useValue(doing.pending);
  useEffect(() => {
    // A dialog tells the answer to what it asked; this is for what was under way before the page was loaded.
    const loaded = Date.now();
    doing.onAnswer = (answer) => {
      if ((answer.ask.asked ?? 0) >= loaded) return;
      const words = "refused" in answer ? explain(answer.refused) : t("answer" in answer ? "done" : "notRepeated");
      say(`${answer.ask.about.title}: ${words}`);
    };
    doing.resume(`staff ${person.subject}`);
  }, [person.subject]);

  return (
    <Read from={hospitals}>
      {(all) => {
        const hospital = all.find((one) => one.hospitalId === chosen) ?? (person.hospital ? undefined : all[0]);
        if (!hospital) return <Empty screen title={person.hospital || t("noHospitals")} />;
        return (
          <div class="staff">
            <div class="between hospital">
              {person.hospital ? (
                <p class="place">{hospital.name}</p>
              ) : (
                <Field label={t("chooseHospitalOperator")}>
                  {(id) => (
                    <select
                      id={id}
                      value={hospital.hospitalId}
                      onChange={(event) => {
                        sessionStorage.setItem(CHOSEN, event.currentTarget.value);
                        choose(event.currentTarget.value);
                      }}
                    >
                      {all.map((one) => (
                        <option key={one.hospitalId} value={one.hospitalId}>
                          {one.name}
                        </option>
                      ))}
                    </select>
                  )}
                </Field>
              )}
              <nav class="tabs" aria-label={t("managerArea")}>
                {TABS.map(([href, name]) => (
                  <Link
                    key={href}
                    href={href}
                    aria-current={
                      path === href || (href !== "/manager" && path.startsWith(`${href}/`)) ? "page" : undefined
                    }
                  >
                    {t(name)}
                  </Link>
                ))}
              </nav>
            </div>
            {pending.length > 0 && (
              <Pending
                asks={doing}
                name={(ask) => ask.about.title ?? t("askOther")}
                only={(ask) => ask.waiting !== undefined}
              />
            )}
            <Screen key={`${hospital.hospitalId} ${path}`} path={path} hospital={hospital} />
          </div>
        );
      }}
    </Read>
  );
}

function Screen({ path, hospital }: Here & { path: string }) {
  if (match("/manager", path)) return <DayList hospital={hospital} />;
  if (match("/manager/waiting", path)) return <Waiting hospital={hospital} />;
  if (match("/manager/lots", path)) return <Lots hospital={hospital} />;
  if (match("/manager/places", path)) return <Places hospital={hospital} />;
  const lot = match("/manager/lots/:id", path);
  if (lot) return <LotPage hospital={hospital} lotId={lot.id ?? ""} />;
  return <Empty screen title={t("notFound")} />;
}
