import { useState } from "preact/hooks";
import type { Lot } from "../../gen/vaccination/vaccinemgmt/v1/lot_pb.js";
import { VaccinemgmtService } from "../../gen/vaccination/vaccinemgmt/v1/vaccinemgmt_service_pb.js";
import { dayIn, daysBetween, isDay } from "../days.ts";
import { perform } from "../doing.ts";
import { manufacturerName, number, plainDay, t, vaccineName } from "../i18n.ts";
import { manufacturers, vaccines } from "../texts.ts";
import { Act } from "../ui/act.tsx";
import { AsOf, Badge, Button, Empty, Field, Heading, Input, Link, Read, Table } from "../ui/parts.tsx";
import { say } from "../ui/toast.tsx";
import { type Here, useLots } from "./staff.ts";
import { lotNumberOf, sameCode } from "./stock.ts";

/** The hospital's stock. */
export function Lots({ hospital }: Here) {
  const lots = useLots(hospital.hospitalId);
  const today = dayIn(hospital.timeZone, Date.now());
  const [usableOnly, setUsableOnly] = useState(true);
  const [taking, setTaking] = useState(false);
  return (
    <>
      <div class="between">
        <Heading>{t("lots")}</Heading>
        <Button kind="main" onClick={() => setTaking(true)}>
          {t("delivery")}
        </Button>
      </div>
      <div class="between">
        <label class="check">
          <input
            type="checkbox"
            checked={usableOnly}
            onChange={(event) => setUsableOnly(event.currentTarget.checked)}
          />
          {t("usableOnly")}
        </label>
        <AsOf at={lots.at} zone={hospital.timeZone} onRefresh={lots.reload} />
      </div>
      <Read from={lots}>
        {(all) => {
          const shown = all.filter(
            (lot) => !usableOnly || (!lot.withdrawn && lot.expiryDate >= today && lot.free + lot.reserved > 0),
          );
          if (!shown.length) return <Empty title={t("noLots")} />;
          return (
            <Table
              caption={t("lots")}
              head={[
                t("lot"),
                t("vaccine"),
                t("expires"),
                <span class="unseen">{t("quantity")}</span>,
                ...(["free", "reserved", "administered", "writtenOff", "received"] as const).map((key) => (
                  <span class="right">{t(key)}</span>
                )),
              ]}
            >
              {shown.map((lot) => (
                <tr key={lot.lotId}>
                  <th scope="row">
                    <Link href={`/manager/lots/${lot.lotId}`}>{lot.lotNumber}</Link>
                  </th>
                  <td class="words">
                    {vaccineName(lot.vaccineCode)}
                    <span class="soft id-short">{manufacturerName(lot.manufacturer)}</span>
                  </td>
                  <td>
                    <Expiry lot={lot} today={today} />
                  </td>
                  <td>
                    <Bar lot={lot} />
                  </td>
                  <td class="number strong">{number(lot.free)}</td>
                  <td class="number">{number(lot.reserved)}</td>
                  <td class="number">{number(lot.administered)}</td>
                  <td class="number">{number(lot.writtenOff)}</td>
                  <td class="number">{number(lot.received)}</td>
                </tr>
              ))}
            </Table>
          );
        }}
      </Read>
      {taking && (
        <Delivery
          hospital={hospital}
          lots={lots.data ?? []}
          onDone={(text) => {
            setTaking(false);
            say(text);
            void lots.reload();
          }}
          onClose={() => setTaking(false)}
        />
      )}
    </>
  );
}

export function Expiry({ lot, today }: { lot: Lot; today: string }) {
  const days = daysBetween(today, lot.expiryDate);
  return (
    <>
      <span class="nowrap">{plainDay(lot.expiryDate)}</span>{" "}
      {lot.withdrawn ? (
        <Badge tone="bad">{t("withdrawn")}</Badge>
      ) : days < 0 ? (
        <Badge tone="bad">{t("expired")}</Badge>
      ) : days <= 30 ? (
        <Badge tone="wait">{t("expiresIn", days)}</Badge>
      ) : null}
    </>
  );
}

/** How a lot's doses are divided; the numbers beside it say the same. */
export function Bar({ lot }: { lot: Lot }) {
  const all = Math.max(1, lot.received);
  let start = 0;
  const parts = (["administered", "reserved", "free", "writtenOff"] as const).map((name) => {
    const part = { name, start, length: lot[name] };
    start += part.length;
    return part;
  });
  return (
    <svg class="stock-bar" viewBox={`0 0 ${all} 10`} preserveAspectRatio="none" aria-hidden="true">
      <rect class="track" width={all} height="10" />
      {parts.map((part) => (
        <rect key={part.name} class={part.name} x={part.start} width={part.length} height="10" />
      ))}
    </svg>
  );
}

function Delivery({
  hospital,
  lots,
  onDone,
  onClose,
}: Here & { lots: readonly Lot[]; onDone: (text: string) => void; onClose: () => void }) {
  const [form, setForm] = useState({
    lotNumber: "",
    vaccineCode: "",
    manufacturer: "",
    productionDate: "",
    expiryDate: "",
    quantity: "",
    deliveryId: "",
  });
  const lotNumber = lotNumberOf(form.lotNumber);
  const known = lots.find(
    (lot) =>
      lot.lotNumber === lotNumber &&
      (!form.vaccineCode || sameCode(lot.vaccineCode, form.vaccineCode)) &&
      (!form.manufacturer || lot.manufacturer === form.manufacturer),
  );
  // What is known of the lot need not be typed again.
  const filled = {
    ...form,
    vaccineCode: form.vaccineCode || known?.vaccineCode || "",
    manufacturer: form.manufacturer || known?.manufacturer || "",
    productionDate: form.productionDate || known?.productionDate || "",
    expiryDate: form.expiryDate || known?.expiryDate || "",
  };
  const quantity = Number(form.quantity);
  const backwards =
    isDay(filled.productionDate) && isDay(filled.expiryDate) && filled.expiryDate < filled.productionDate;
  const ready =
    lotNumber !== "" &&
    /^\d{1,3}$/.test(filled.vaccineCode) &&
    /^[A-Z0-9]{2,5}$/.test(filled.manufacturer) &&
    isDay(filled.productionDate) &&
    isDay(filled.expiryDate) &&
    !backwards &&
    Number.isInteger(quantity) &&
    quantity > 0 &&
    form.deliveryId !== "";
  const effects = ready
    ? [
        known
          ? t("deliveryAdds", lotNumber, known.received, known.received + quantity)
          : t("deliveryNew", lotNumber, quantity),
        t("deliveryWaiting"),
      ]
    : [];
  const set = (name: keyof typeof form) => (text: string) => setForm({ ...form, [name]: text });
  const title = t("delivery");
  return (
    <Act
      title={title}
      label={t("take")}
      wide
      effects={effects}
      run={() =>
        perform(
          VaccinemgmtService.method.registerLots,
          { hospitalId: hospital.hospitalId, deliveries: [{ ...filled, lotNumber, quantity }] },
          title,
        )
      }
      onDone={(response) => onDone(response.taken.length ? t("deliveryTaken", quantity) : t("deliveryKnown"))}
      onClose={onClose}
    >
      <div class="form">
        <Input
          label={t("lotNumber")}
          hint={t("scan")}
          autocomplete="off"
          required
          value={form.lotNumber}
          onText={set("lotNumber")}
        />
        <Input
          label={t("deliveryId")}
          hint={t("deliveryIdHint")}
          autocomplete="off"
          required
          value={form.deliveryId}
          onText={set("deliveryId")}
        />
        <Code
          label={t("vaccine")}
          known={vaccines}
          nameOf={vaccineName}
          inputMode="numeric"
          value={filled.vaccineCode}
          onText={set("vaccineCode")}
        />
        <Code
          label={t("manufacturer")}
          known={manufacturers}
          nameOf={manufacturerName}
          value={filled.manufacturer}
          onText={set("manufacturer")}
        />
        <Input
          label={t("productionDate")}
          type="date"
          required
          value={filled.productionDate}
          onText={set("productionDate")}
        />
        <Input
          label={t("expiryDate")}
          error={backwards ? t("expiresFirst") : undefined}
          type="date"
          required
          value={filled.expiryDate}
          onText={set("expiryDate")}
        />
        <Input
          label={t("howMany")}
          type="number"
          min="1"
          max="1000000"
          required
          value={form.quantity}
          onText={set("quantity")}
        />
      </div>
    </Act>
  );
}

/** A code to type, or to choose by its name. */
function Code({
  label,
  known,
  nameOf,
  inputMode,
  value,
  onText,
}: {
  label: string;
  known: Readonly<Record<string, unknown>>;
  nameOf: (code: string) => string;
  inputMode?: "numeric";
  value: string;
  onText: (code: string) => void;
}) {
  return (
    <Field label={label}>
      {(id) => (
        <>
          <input
            id={id}
            list={`${id}-list`}
            {...(inputMode ? { inputMode } : {})}
            autocomplete="off"
            required
            value={value}
            onInput={(event) => onText(event.currentTarget.value)}
          />
          <datalist id={`${id}-list`}>
            {Object.keys(known).map((code) => (
              <option key={code} value={code} label={nameOf(code)} />
            ))}
          </datalist>
          {known[value] !== undefined && <p class="hint">{nameOf(value)}</p>}
        </>
      )}
    </Field>
  );
}
