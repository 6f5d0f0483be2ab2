import{d as o}from"./chunk-V5KZCUB3.js";function e(r){return o("p",{children:"operator"})}export{e as Operator};
